"""Weight formats of published MoE checkpoints, written and read back independently of Switchyard.

Every format is one `encode(w) -> {suffix: tensor}` from a float matrix [N, K] to the tensors that a
checkpoint stores for it, and one `decode(stored) -> float64 [N, K]` that starts from the stored
tensors only. `decode` is the truth the fixtures are computed from, so it is written from the
published layouts and shares no arithmetic with `encode`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Stored = dict[str, torch.Tensor]

E2M1 = torch.tensor(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64
)
E4M3_MAX = 448.0
E2M1_MAX = 6.0


@dataclass(frozen=True)
class WeightFormat:
    name: str
    encode: Callable[[torch.Tensor], Stored]
    decode: Callable[[Stored], torch.Tensor]
    # What config.json says about the format; `ignore` lists the modules left in bf16.
    quantization_config: dict = field(default_factory=dict)
    # Other files that publishers put beside config.json.
    extra_files: dict = field(default_factory=dict)


# --- pieces -------------------------------------------------------------------------------------


def group_amax(w: torch.Tensor, group: int) -> torch.Tensor:
    """[N, K] -> largest magnitude of each run of `group` columns, [N, K / group]."""
    return w.reshape(w.shape[0], -1, group).abs().amax(-1)


def spread(scale: torch.Tensor, rows: int, cols: int, shape) -> torch.Tensor:
    """Scale of each element for blocks of rows x cols; the last block may be cut."""
    full = scale.double().repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return full[: shape[0], : shape[1]]


def nearest_e2m1(w: torch.Tensor) -> torch.Tensor:
    """Codes 0..15; a tie takes the first, that is the smaller magnitude."""
    return (w.double().unsqueeze(-1) - E2M1).abs().argmin(-1).to(torch.uint8)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """[..., K] codes -> [..., K / 2] bytes, element 2j in the low nibble."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    packed = packed.view(torch.uint8)
    codes = torch.stack([packed % 16, packed // 16], dim=-1).flatten(-2)
    return E2M1[codes.long()]


def pack_int32(nibbles: torch.Tensor) -> torch.Tensor:
    """[..., K] values 0..15 -> [..., ceil(K / 8)] int32, element j at bits 4 * (j % 8)."""
    pad = -nibbles.shape[-1] % 8
    words = torch.nn.functional.pad(nibbles.long(), (0, pad)).unflatten(-1, (-1, 8))
    word = sum(words[..., j] * 16**j for j in range(8))
    return (word - (word >= 2**31) * 2**32).to(torch.int32)


def unpack_int32(packed: torch.Tensor, count: int) -> torch.Tensor:
    shifts = torch.arange(8) * 4
    return (packed.long().unsqueeze(-1) >> shifts).bitwise_and(15).flatten(-2)[..., :count]


def e8m0_of(amax: torch.Tensor, element_max: float) -> torch.Tensor:
    """Biased exponent of the smallest power of two that keeps amax / 2^e within element_max."""
    exponent = torch.ceil(torch.log2((amax.double() / element_max).clamp(min=2.0**-120)))
    return (exponent + 127).to(torch.uint8)


def e8m0_value(stored: torch.Tensor) -> torch.Tensor:
    return torch.exp2(stored.view(torch.uint8).double() - 127)


# --- formats ------------------------------------------------------------------------------------


def mx_fp4(weight: str, scale: str, value_type, scale_type) -> tuple[Callable, Callable]:
    """E2M1 with an E8M0 scale per 32 columns; publishers differ in names and in dtype labels."""

    def encode(w):
        e8m0 = e8m0_of(group_amax(w, 32), E2M1_MAX)
        codes = nearest_e2m1(w.double() / spread(e8m0_value(e8m0), 1, 32, w.shape))
        return {weight: pack_nibbles(codes).view(value_type), scale: e8m0.view(scale_type)}

    def decode(stored):
        w = unpack_e2m1(stored[weight])
        return w * spread(e8m0_value(stored[scale]), 1, 32, w.shape)

    return encode, decode


def gpt_oss_mxfp4() -> tuple[Callable, Callable]:
    """Blocks of 16 bytes on an axis of their own: [N, K / 32, 16]."""
    encode2d, decode2d = mx_fp4("blocks", "scales", torch.uint8, torch.uint8)

    def encode(w):
        stored = encode2d(w)
        return {**stored, "blocks": stored["blocks"].unflatten(-1, (-1, 16))}

    return encode, lambda stored: decode2d({**stored, "blocks": stored["blocks"].flatten(-2)})


def mx_fp8(scale: str) -> tuple[Callable, Callable]:
    def encode(w):
        e8m0 = e8m0_of(group_amax(w, 32), E4M3_MAX)
        values = (w.double() / spread(e8m0_value(e8m0), 1, 32, w.shape)).float()
        return {"weight": values.to(torch.float8_e4m3fn), scale: e8m0}

    def decode(stored):
        w = stored["weight"].double()
        return w * spread(e8m0_value(stored[scale]), 1, 32, w.shape)

    return encode, decode


def block_fp8(
    scale: str, rows: int, cols: int, power_of_two: bool = False
) -> tuple[Callable, Callable]:
    """E4M3 with one multiplier per rows x cols block (0: the whole extent)."""

    def extents(shape):
        return rows or shape[0], cols or shape[1]

    def encode(w):
        r, c = extents(w.shape)
        padded = torch.nn.functional.pad(w, (0, -w.shape[1] % c, 0, -w.shape[0] % r))
        amax = padded.abs().unflatten(1, (-1, c)).unflatten(0, (-1, r)).amax((1, 3))
        scales = e8m0_of(amax, E4M3_MAX) if power_of_two else (amax / E4M3_MAX).float()
        multiplier = e8m0_value(scales) if power_of_two else scales
        values = (w.double() / spread(multiplier, r, c, w.shape)).clamp(-E4M3_MAX, E4M3_MAX)
        stored = scales.view(torch.float8_e8m0fnu) if power_of_two else scales
        return {"weight": values.float().to(torch.float8_e4m3fn), scale: stored}

    def decode(stored):
        w, s = stored["weight"].double(), stored[scale]
        multiplier = e8m0_value(s) if power_of_two else s
        return w * spread(multiplier, *extents(w.shape), w.shape)

    return encode, decode


def tensor_fp8() -> tuple[Callable, Callable]:
    """One multiplier per matrix and a static activation scale."""
    encode2d, _ = block_fp8("weight_scale", 0, 0)

    def encode(w):
        stored = encode2d(w)
        return {
            "weight": stored["weight"],
            "weight_scale": stored["weight_scale"].reshape(1),
            "input_scale": torch.tensor([0.01]),
        }

    return encode, lambda stored: stored["weight"].double() * stored["weight_scale"].double()


def channel_fp8() -> tuple[Callable, Callable]:
    """One bf16 multiplier per output channel; rounded up so that no value saturates."""

    def encode(w):
        scale = (w.abs().amax(1, keepdim=True) / E4M3_MAX * (1 + 2.0**-7)).to(torch.bfloat16)
        return {"weight": (w / scale.float()).to(torch.float8_e4m3fn), "weight_scale": scale}

    return encode, lambda stored: stored["weight"].double() * stored["weight_scale"].double()


def packed_int4(group: int, symmetric: bool) -> tuple[Callable, Callable]:
    """Eight nibbles per int32, bf16 scale per group; nibble = q + 8, or has a zero point."""

    def encode(w):
        groups = w.unflatten(1, (-1, group))
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        step = groups.abs().amax(-1) / 7.5 if symmetric else (high - low) / 15
        scale = step.to(torch.bfloat16)
        zero = torch.full_like(low, 8) if symmetric else (-low / scale.float()).round().clamp(0, 15)
        nibbles = (
            (w / spread(scale, 1, group, w.shape) + spread(zero, 1, group, w.shape))
            .round()
            .clamp(0, 15)
        )
        stored = {
            "weight_packed": pack_int32(nibbles),
            "weight_scale": scale,
            "weight_shape": torch.tensor(w.shape, dtype=torch.int64),
        }
        if not symmetric:  # packed along N
            stored["weight_zero_point"] = pack_int32(zero.T.contiguous()).T.contiguous()
        return stored

    def decode(stored):
        rows, cols = stored["weight_shape"].tolist()
        nibbles = unpack_int32(stored["weight_packed"], cols).double()
        zero = torch.tensor(8.0)
        if not symmetric:
            zero = spread(
                unpack_int32(stored["weight_zero_point"].T, rows).T, 1, group, (rows, cols)
            )
        return (nibbles - zero) * spread(stored["weight_scale"], 1, group, (rows, cols))

    return encode, decode


def nv_fp4(packed: str, second: str, divides: bool, static_input: str) -> tuple[Callable, Callable]:
    """E2M1, E4M3 scale per 16 columns, second level f32 that multiplies (ModelOpt) or divides."""

    def encode(w):
        multiplier = w.abs().max() / (E2M1_MAX * E4M3_MAX)
        global_scale = (1 / multiplier if divides else multiplier).float()
        multiplier = 1 / global_scale.double() if divides else global_scale.double()
        scale = (group_amax(w, 16) / E2M1_MAX / multiplier).clamp(2.0**-9, E4M3_MAX)
        scale = scale.float().to(torch.float8_e4m3fn)
        codes = nearest_e2m1(w.double() / multiplier / spread(scale.float(), 1, 16, w.shape))
        return {
            packed: pack_nibbles(codes),
            "weight_scale": scale,
            second: global_scale.reshape([1] if divides else []),
            static_input: torch.tensor([250.0] if divides else 0.004),
        }

    def decode(stored):
        w, second_level = unpack_e2m1(stored[packed]), stored[second].double()
        w = w * spread(stored["weight_scale"].float(), 1, 16, w.shape)
        return w / second_level if divides else w * second_level

    return encode, decode


# --- the table ----------------------------------------------------------------------------------


def compressed_tensors(
    format_name: str, ignore: list[str], inputs: dict | None = None, **weights
) -> dict:
    defaults = {
        "symmetric": True,
        "actorder": None,
        "dynamic": False,
        "observer": "minmax",
        "block_structure": None,
    }
    group = {
        "targets": ["Linear"],
        "weights": {**defaults, **weights},
        "input_activations": inputs,
        "output_activations": None,
        "format": format_name,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


FP8_INPUTS = {
    "num_bits": 8,
    "type": "float",
    "strategy": "token",
    "symmetric": True,
    "dynamic": True,
}
FP4_INPUTS = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "symmetric": True,
    "dynamic": "local",
}
UNQUANTIZED = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_expert.*",
    "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    "re:.*gate$",
]
MODELOPT = {
    "quant_algo": "NVFP4",
    "kv_cache_quant_algo": None,
    "group_size": 16,
    "exclude_modules": ["lm_head", "model.layers.*.mlp.gate", "model.layers.*.self_attn*"],
}

FORMATS = {
    f.name: f
    for f in [
        WeightFormat(
            "fp8_block128",
            *block_fp8("weight_scale_inv", 128, 128),
            {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            },
        ),
        WeightFormat("fp8_block128_ue8m0", *block_fp8("scale", 128, 128, power_of_two=True)),
        WeightFormat(
            "fp8_channel",
            *channel_fp8(),
            compressed_tensors(
                "float-quantized",
                UNQUANTIZED,
                FP8_INPUTS,
                num_bits=8,
                type="float",
                strategy="channel",
                group_size=None,
            ),
        ),
        WeightFormat(
            "fp8_tensor",
            *tensor_fp8(),
            {
                "quant_method": "fp8",
                "activation_scheme": "static",
                "ignored_layers": ["lm_head", "gate", "self_attn"],
            },
        ),
        WeightFormat(
            "mxfp8",
            *mx_fp8("weight_scale_inv"),
            {
                "quant_method": "mxfp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [1, 32],
                "scale_fmt": "ue8m0",
            },
        ),
        WeightFormat(
            "mxfp4_gpt_oss",
            *gpt_oss_mxfp4(),
            {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
            },
        ),
        WeightFormat(
            "mxfp4_deepseek",
            *mx_fp4("weight", "scale", torch.int8, torch.float8_e8m0fnu),
            {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "scale_fmt": "ue8m0",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "expert_dtype": "fp4",
            },
        ),
        WeightFormat(
            "mxfp4_compressed_tensors",
            *mx_fp4("weight_packed", "weight_scale", torch.uint8, torch.uint8),
            compressed_tensors(
                "mxfp4-pack-quantized",
                UNQUANTIZED,
                num_bits=4,
                type="float",
                strategy="group",
                group_size=32,
                scale_dtype="torch.uint8",
            ),
        ),
        WeightFormat(
            "mxfp4_quark",
            *mx_fp4("weight", "weight_scale", torch.uint8, torch.uint8),
            {
                "quant_method": "quark",
                "global_quant_config": {
                    "weight": {
                        "dtype": "fp4",
                        "qscheme": "per_group",
                        "group_size": 32,
                        "scale_format": "e8m0",
                        "ch_axis": -1,
                        "is_dynamic": False,
                    },
                    "input_tensors": {
                        "dtype": "fp4",
                        "qscheme": "per_group",
                        "group_size": 32,
                        "scale_format": "e8m0",
                        "ch_axis": -1,
                        "is_dynamic": True,
                    },
                    "bias": None,
                    "output_tensors": None,
                },
                "layer_quant_config": {},
                "exclude": ["lm_head", "re:.*gate$", "re:.*self_attn.*"],
                "export": {"pack_method": "reorder", "weight_format": "real_quantized"},
            },
        ),
        WeightFormat(
            "int4_group32",
            *packed_int4(32, symmetric=True),
            compressed_tensors(
                "pack-quantized",
                UNQUANTIZED,
                num_bits=4,
                type="int",
                strategy="group",
                group_size=32,
            ),
        ),
        WeightFormat(
            "int4_group32_zero_point",
            *packed_int4(32, symmetric=False),
            compressed_tensors(
                "pack-quantized",
                UNQUANTIZED,
                num_bits=4,
                type="int",
                strategy="group",
                group_size=32,
                symmetric=False,
            ),
        ),
        WeightFormat(
            "nvfp4_modelopt",
            *nv_fp4("weight", "weight_scale_2", False, "input_scale"),
            {"quant_method": "modelopt", **MODELOPT},
            {"hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": MODELOPT}},
        ),
        WeightFormat(
            "nvfp4_compressed_tensors",
            *nv_fp4("weight_packed", "weight_global_scale", True, "input_global_scale"),
            compressed_tensors(
                "nvfp4-pack-quantized",
                UNQUANTIZED,
                FP4_INPUTS,
                num_bits=4,
                type="float",
                strategy="tensor_group",
                group_size=16,
            ),
        ),
    ]
}
