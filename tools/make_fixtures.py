#!/usr/bin/env python3
"""Writes tiny random MoE checkpoints and what the transformers package computes from them.

    python3 tools/make_fixtures.py OUT_DIR [NAME ...]

Needs exactly  torch==2.11.0  transformers==5.17.0  safetensors==0.8.0  compressed-tensors==0.20.0
accelerate==1.15.0  (a CPU is enough; half a minute). Same versions, same bytes.

Each OUT_DIR/<name>/ holds config.json and model.safetensors as the model class's save_pretrained
writes them (quantised ones: with the experts re-encoded by fixture_formats.py), and
expected.safetensors: hidden_states [T, H], output [T, H], topk_ids and topk_weights [T, K],
layer [1] and, for hash layers, input_ids [T]. `output` comes from the package's own MoE block,
run in float64 on the weights as they are stored. Nothing of Switchyard takes part.
"""

import json
import re
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from fixture_families import FIXTURES, Fixture
from fixture_formats import FORMATS
from safetensors.torch import load_file, save_file

VERSIONS = {
    "torch": (torch.__version__.split("+")[0], "2.11.0"),
    "transformers": (transformers.__version__, "5.17.0"),
    "compressed-tensors": (compressed_tensors.__version__, "0.20.0"),
}
NUM_TOKENS = 7
ROUTING_MARGIN = 0.02  # relative noise on hidden_states that must not change the chosen experts


# --- weights ------------------------------------------------------------------------------------


def random_value(name: str, shape, k_major: bool) -> torch.Tensor:
    """Sizes that make every part of a block matter: outputs of order 1, clamps and biases bite."""
    normal = torch.randn(shape)
    if name.endswith("tid2eid"):
        return normal  # replaced in `randomise`: needs the number of experts
    if re.search(r"e_score_correction_bias|expert_bias", name):
        return 0.2 * normal
    if name.endswith("per_expert_scale"):
        return 1 + 0.3 * normal.clamp(-2, 2)
    if len(shape) < 2:
        return 0.5 * normal if name.endswith("bias") else 1 + 0.1 * normal
    if re.search(r"\.(gate|router|wg|router\.layer|router\.proj|router\.gate)\.weight$", name):
        return normal * (2.0 if "router.proj" in name else 2.0 / shape[-1] ** 0.5)
    fan_in = shape[-2] if k_major else shape[-1]
    gain = 1.5 if re.search(r"gate|up|w1|w3", name) else 1.0
    return normal * gain / fan_in**0.5


def randomise(model, fixture: Fixture) -> None:
    """bf16 everywhere, f32 where publishers keep f32."""
    keep_f32 = "|".join(filter(None, [r"e_score_correction_bias|expert_bias", fixture.keep_f32]))
    k_major = fixture.name.startswith(("gpt_oss", "llama4"))  # [E, K, N] in memory
    named = list(model.named_parameters()) + list(model.named_buffers())
    for name, tensor in named:
        if name.endswith("tid2eid"):
            num_experts = model.config.n_routed_experts
            for row in tensor:
                row.copy_(torch.randperm(num_experts)[: row.numel()])
        elif isinstance(tensor, torch.nn.Parameter) or re.search(r"bias$", name):
            value = random_value(name, tensor.shape, k_major and "experts." in name)
            tensor.data = value if re.search(keep_f32, name) else value.to(torch.bfloat16)


def build(fixture: Fixture):
    text = fixture.text_config
    config_class = fixture.config_class or re.sub(
        "(ForCausalLM|ForConditionalGeneration)$", "Config", fixture.model
    )
    config_class = config_class.replace("MiniMaxM3Sparse", "MiniMaxM3VL")
    kwargs = {**fixture.config, **({"text_config": text} if text else {})}
    config = getattr(transformers, config_class)(**kwargs)
    config.dtype = torch.bfloat16
    torch.manual_seed(zlib.crc32(fixture.name.encode()))
    model = getattr(transformers, fixture.model)(config)
    randomise(model, fixture)
    return model


# --- checkpoints --------------------------------------------------------------------------------


def encode_tensor(name: str, tensor: torch.Tensor, format_name: str) -> dict:
    """One bf16 tensor -> the tensors stored for it; stacked experts [E, K, N] as N-major rows."""
    encode = FORMATS[format_name].encode
    if tensor.ndim == 3:
        rows = tensor.transpose(1, 2).contiguous()
        stored = encode(rows.flatten(0, 1).float())
        return {
            f"{name}_{suffix}": value.unflatten(0, rows.shape[:2])
            for suffix, value in stored.items()
        }
    return {
        f"{name.removesuffix('weight')}{suffix}": value
        for suffix, value in encode(tensor.float()).items()
    }


def decode_tensor(name: str, shape, stored: dict, format_name: str) -> torch.Tensor:
    """The inverse, from stored tensors alone; float64."""
    decode = FORMATS[format_name].decode
    if len(shape) == 3:
        flat = {key.removeprefix(f"{name}_"): value.flatten(0, 1) for key, value in stored.items()}
        return decode(flat).unflatten(0, (shape[0], -1)).transpose(1, 2).contiguous()
    return decode(
        {key.removeprefix(name.removesuffix("weight")): value for key, value in stored.items()}
    )


def quantise(directory: Path, exact_directory: Path, fixture: Fixture) -> None:
    """Re-encodes a saved checkpoint in place; leaves what it now means, in float64, beside it."""
    tensors = load_file(directory / "model.safetensors")
    stored, exact = {}, {}
    for name, tensor in tensors.items():
        format_name = next(
            (f for pattern, f in fixture.formats.items() if re.search(pattern + "$", name)), None
        )
        pieces = encode_tensor(name, tensor, format_name) if format_name else {name: tensor}
        stored.update(pieces)
        exact[name] = (
            decode_tensor(name, tensor.shape, pieces, format_name) if format_name else tensor
        )
        error = (exact[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert error < 0.15, f"{name}: {format_name} is off by {error}"
    config = json.loads((directory / "config.json").read_text())
    exact_directory.mkdir()
    (exact_directory / "config.json").write_text(json.dumps(config))
    save_file(exact, exact_directory / "model.safetensors", {"format": "pt"})

    main_format = FORMATS[next(iter(fixture.formats.values()))]
    config["quantization_config"] = main_format.quantization_config
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file_name, content in main_format.extra_files.items():
        (directory / file_name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(stored, directory / "model.safetensors", {"format": "pt"})


def transpose(directory: Path, pattern: str) -> None:
    path = directory / "model.safetensors"
    turned = {
        name: value.transpose(1, 2).contiguous() if re.search(pattern + "$", name) else value
        for name, value in load_file(path).items()
    }
    save_file(turned, path, {"format": "pt"})


def load(directory: Path, fixture: Fixture, dtype: torch.dtype):
    model, report = getattr(transformers, fixture.model).from_pretrained(
        directory,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    unexplained = [key for key in report["missing_keys"] if "mlp" in key or "expert" in key]
    assert not unexplained, unexplained
    return model.eval()


# --- checks against other people's decoders -----------------------------------------------------


def check_with_transformers(directory: Path, exact_model, fixture: Fixture) -> str:
    """The package's own loader dequantises to bf16; every weight must be ours, rounded once."""
    theirs = load(directory, fixture, torch.bfloat16).state_dict()
    for name, value in exact_model.state_dict().items():
        if value.is_floating_point():
            error = (theirs[name].double() - value).abs().max() / value.abs().max().clamp(min=1e-30)
            assert error <= 2.0**-8, f"{name}: transformers reads something else ({error})"
    return "transformers"


def check_with_compressed_tensors(directory: Path, exact_directory: Path) -> str:
    """Every packed matrix, by the format's own package."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    scheme = QuantizationScheme(**group)
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    stored, exact = (
        load_file(directory / "model.safetensors"),
        load_file(exact_directory / "model.safetensors"),
    )
    modules = {key.rpartition(".")[0] for key in stored if key.endswith(".weight_scale")}
    assert modules
    for module in modules:
        pieces = {
            key.rpartition(".")[2]: value
            for key, value in stored.items()
            if key.rpartition(".")[0] == module
        }
        theirs = compressor.decompress(pieces, scheme)["weight"].double()
        ours = exact[f"{module}.weight"]
        error = (theirs - ours).abs().max() / ours.abs().max()
        assert error <= 2.0**-8, f"{module}: compressed-tensors reads something else ({error})"
    return "compressed-tensors"


# --- expected values ----------------------------------------------------------------------------


def run_block(block, hidden_states: torch.Tensor, input_ids):
    """Output, ids and weights of the package's own block for [T, H]."""
    routing = {}

    def remember(module, args, result):
        candidates = [t for t in result if isinstance(t, torch.Tensor)]
        ids = next((t for t in candidates if not t.is_floating_point()), None)
        if ids is None:  # Llama-4 returns scores [T, E], zero where not chosen
            weights, ids = candidates[0].topk(module.top_k, dim=-1)
        else:
            weights = next(t for t in candidates if t.is_floating_point() and t.shape == ids.shape)
        routing.update(ids=ids, weights=weights)

    router = getattr(block, "gate", None) or block.router
    handle = router.register_forward_hook(remember)
    with torch.no_grad():
        if isinstance(block, transformers.models.gemma4.modeling_gemma4.Gemma4TextDecoderLayer):
            _, weights, ids = block.router(
                hidden_states
            )  # the block's two modules, without the layer's norms
            output = block.experts(hidden_states, ids, weights)
        elif input_ids is not None:
            output = block(hidden_states[None], input_ids[None])
        else:
            output = block(hidden_states[None])
    handle.remove()
    output = output[0] if isinstance(output, tuple) else output
    # MiniMax-M3 scales the experts' sum, not the weights.
    weights = routing["weights"] * getattr(block, "routed_scaling_factor", 1)
    return output.reshape(hidden_states.shape), routing["ids"], weights


def choose_tokens(block, hidden_size: int) -> torch.Tensor:
    """bf16 tokens whose choice of experts survives noise, so that rounding cannot decide it."""
    candidates = torch.randn(64, hidden_size) * torch.exp2(torch.randint(-1, 2, (64, 1)))
    candidates = candidates.to(torch.bfloat16).double()
    chosen = run_block(block, candidates, None)[1].sort(-1).values
    stable = torch.ones(len(candidates), dtype=torch.bool)
    for _ in range(8):
        noisy = candidates * (1 + ROUTING_MARGIN * torch.randn_like(candidates))
        stable &= (run_block(block, noisy, None)[1].sort(-1).values == chosen).all(-1)
    assert stable.sum() >= NUM_TOKENS, f"only {stable.sum()} tokens route clearly"
    return candidates[stable][:NUM_TOKENS]


def write_expected(model, fixture: Fixture, layer: int, path: Path) -> float:
    block = model.get_submodule(fixture.block.format(layer))
    config = model.config.get_text_config()
    torch.manual_seed(zlib.crc32(f"{fixture.name} tokens {layer}".encode()))
    input_ids = None
    if getattr(block, "is_hash", False):
        input_ids = torch.randint(0, config.vocab_size, (NUM_TOKENS,))
        hidden_states = torch.randn(NUM_TOKENS, config.hidden_size).to(torch.bfloat16).double()
    else:
        hidden_states = choose_tokens(block, config.hidden_size)
    output, ids, weights = run_block(block, hidden_states, input_ids)
    assert output.dtype == torch.float64 and output.isfinite().all()
    rms = output.pow(2).mean().sqrt().item()
    assert 0.1 < rms < 20, f"outputs of rms {rms} hide errors"
    expected = {
        "hidden_states": hidden_states.float(),
        "output": output.float(),
        "topk_ids": ids.to(torch.int32),
        "topk_weights": weights.float(),
        "layer": torch.tensor([layer]),
    }
    if input_ids is not None:
        expected["input_ids"] = input_ids
    save_file(
        {name: value.contiguous() for name, value in expected.items()},
        path,
        {"block": type(block).__name__},
    )
    return rms


# --- main ---------------------------------------------------------------------------------------


def make(fixture: Fixture, out: Path) -> dict:
    directory = out / fixture.name
    shutil.rmtree(directory, ignore_errors=True)
    build(fixture).save_pretrained(directory, **fixture.save)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if fixture.transpose:
        transpose(directory, fixture.transpose)
    checked = "-"
    with tempfile.TemporaryDirectory() as scratch:
        exact_directory = directory
        if fixture.formats:
            exact_directory = Path(scratch) / "exact"
            quantise(directory, exact_directory, fixture)
        model = load(exact_directory, fixture, torch.float64).double()
        if fixture.formats:
            method = FORMATS[next(iter(fixture.formats.values()))].quantization_config[
                "quant_method"
            ]
            if method == "compressed-tensors":
                checked = check_with_compressed_tensors(directory, exact_directory)
            elif fixture.transformers_can_load:
                checked = check_with_transformers(directory, model, fixture)
        rms = []
        for layer in fixture.layers:
            name = (
                "expected.safetensors"
                if layer == fixture.layers[-1]
                else f"expected_layer{layer}.safetensors"
            )
            rms.append(write_expected(model, fixture, layer, directory / name))
        block = type(model.get_submodule(fixture.block.format(fixture.layers[-1]))).__name__
    for path in directory.iterdir():
        path.chmod(0o644)
    num_bytes = sum(path.stat().st_size for path in directory.iterdir())
    formats = ", ".join(dict.fromkeys(fixture.formats.values())) or "bf16"
    return {
        "fixture": fixture.name,
        "block": block,
        "layers": ", ".join(map(str, fixture.layers)),
        "weights": formats,
        "decoder also checked by": checked,
        "output rms": " ".join(f"{value:.2f}" for value in rms),
        "KiB": str(-(-num_bytes // 1024)),
        "covers": fixture.covers,
    }


def main() -> int:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    wrong = [
        f"{name} is {have}; needs {want}" for name, (have, want) in VERSIONS.items() if have != want
    ]
    if wrong:
        sys.exit("\n".join(wrong))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    out, only = Path(sys.argv[1]), sys.argv[2:]
    rows = []
    for fixture in FIXTURES:
        if not only or fixture.name in only:
            rows.append(make(fixture, out))
            print("  ".join(rows[-1].values()), flush=True)
    if not only:
        header = list(rows[0])
        lines = [
            "# Fixtures",
            "",
            "Tiny random models and the output of transformers' own MoE blocks for them.",
            "Written by `python3 tools/make_fixtures.py fixtures`; do not edit.",
            "",
            "Versions: "
            + ", ".join(f"{name} {have}" for name, (have, _) in VERSIONS.items())
            + ".",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(row.values()) + " |" for row in rows),
        ]
        (out / "README.md").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
