#!/usr/bin/env python3
"""Times whole MoE layers of torch and triton_kernels in CUDA graphs of several layers with their own weights and routing.

Usage: gpu_layer_peers.py OUT.json MODELS.json TOKENS,... [--torch MODEL,...] [--triton MODEL,...]
MODELS.json is what `switchyard models --json` prints. triton_kernels is OpenAI's package (shipped inside vLLM's wheel):
put it on PYTHONPATH, else its rows are left out. Torch's layers are routing, `_grouped_mm` twice, SwiGLU and a sum: what torch
alone offers in bf16. Sizes that are no multiple of 256 are padded for triton_kernels, as vLLM pads them."""
import argparse
import json
import sys

import torch

from gpu_peers import graph_us

LAYERS = 4


def round_up(value, multiple):
    return -(-value // multiple) * multiple


def triton_weights(experts, rows, columns):
    """Random MXFP4 of [experts, rows, columns] in the layout that the kernels want on this GPU."""
    from triton_kernels.matmul_ogs import FlexCtx, PrecisionConfig
    from triton_kernels.numerics import InFlexData
    from triton_kernels.tensor import FP4, convert_layout, wrap_torch_tensor
    from triton_kernels.tensor_details import layout

    codes = torch.randint(0, 256, (experts, rows, columns // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(118, 124, (experts, rows, columns // 32), dtype=torch.uint8, device="cuda")
    kind, options = layout.make_default_matmul_mxfp4_w_layout(mx_axis=1)
    weights = convert_layout(wrap_torch_tensor(codes.transpose(1, 2), dtype=FP4), kind, **options)
    kind, options = layout.make_default_matmul_mxfp4_w_scale_layout(mx_axis=1, num_warps=8)
    scales = convert_layout(wrap_torch_tensor(scales.transpose(1, 2)), kind, **options)
    return weights, PrecisionConfig(weight_scale=scales, flex_ctx=FlexCtx(rhs_data=InFlexData()))


class TritonLayer:
    """MXFP4 weights, bf16 activations."""

    def __init__(self, spec, biased):
        self.experts, self.top_k = spec["num_experts"], spec["top_k"]
        hidden, intermediate = spec["hidden_size"], spec["intermediate_size"]
        experts = self.experts
        self.hidden, inner = round_up(hidden, 256), round_up(intermediate, 256)
        self.gate_up = triton_weights(experts, 2 * inner, self.hidden)
        self.down = triton_weights(experts, self.hidden, inner)
        self.bias = [None, None]
        if biased:
            self.bias = [torch.randn(experts, n, device="cuda") for n in (2 * inner, self.hidden)]

    def __call__(self, x, logits):
        from triton_kernels import swiglu
        from triton_kernels.matmul_ogs import FnSpecs, FusedActivation, GatherIndx, RoutingData, ScatterIndx, matmul_ogs
        from triton_kernels.tensor import make_ragged_tensor_metadata
        from triton_kernels.topk import topk

        chosen = topk(logits, self.top_k)
        by_token, by_expert = chosen.mask_metadata.row_sorted_indx, chosen.mask_metadata.col_sorted_indx
        ragged = make_ragged_tensor_metadata(chosen.mask_metadata.col_sum, by_token.shape[0])
        weights = chosen.vals.flatten()[by_expert]
        routing = RoutingData(weights, ragged.block_sizes, self.experts, self.top_k, ragged)
        activation = FusedActivation(FnSpecs("swiglu", swiglu.swiglu_fn, ("alpha", "limit"), reduction_n=2), (1.702, 7.0))
        h = matmul_ogs(x, self.gate_up[0], self.bias[0], routing, gather_indx=GatherIndx(by_expert, by_token),
                       precision_config=self.gate_up[1], fused_activation=activation)
        return matmul_ogs(h, self.down[0], self.bias[1], routing, scatter_indx=ScatterIndx(by_token, by_expert),
                          precision_config=self.down[1], gammas=weights)


class TorchLayer:
    """bf16 weights and activations."""

    def __init__(self, spec, _biased):
        self.experts, self.top_k, self.hidden = spec["num_experts"], spec["top_k"], spec["hidden_size"]
        experts, hidden, intermediate = self.experts, self.hidden, spec["intermediate_size"]
        self.gate_up = torch.randn(experts, hidden, 2 * intermediate, device="cuda", dtype=torch.bfloat16)
        self.down = torch.randn(experts, intermediate, hidden, device="cuda", dtype=torch.bfloat16)

    def __call__(self, x, logits):
        values, ids = torch.topk(logits, self.top_k)
        weights = torch.softmax(values, -1)
        order = torch.argsort(ids.flatten(), stable=True)
        counts = torch.zeros(self.experts, dtype=torch.int32, device="cuda").scatter_add_(
            0, ids.flatten(), torch.ones_like(ids.flatten(), dtype=torch.int32))
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        gate, up = torch._grouped_mm(x[order // self.top_k], self.gate_up, offs=ends).chunk(2, dim=-1)
        y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, self.down, offs=ends)
        y = y * weights.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(x).index_add_(0, order // self.top_k, y)


def layer_us(kind, model, tokens_list, report):
    spec = model["spec"]
    layers = [kind(spec, model["biases"]) for _ in range(LAYERS)]
    for tokens in tokens_list:
        x = torch.randn(tokens, layers[0].hidden, device="cuda", dtype=torch.bfloat16)
        logits = [torch.randn(tokens, spec["num_experts"], device="cuda", dtype=torch.bfloat16) for _ in range(2 * LAYERS)]
        # Twice round: each weight has left the L2 before it is read again.
        report(tokens, graph_us(lambda i: layers[i % LAYERS](x, logits[i]), 2 * LAYERS))
    del layers
    torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("models")
    parser.add_argument("tokens")
    parser.add_argument("--torch", default="qwen3-30b-a3b,deepseek-r1-ep8")
    parser.add_argument("--triton", default="gpt-oss-120b,deepseek-r1-tp8,deepseek-r1-ep8")
    args = parser.parse_args()
    with open(args.models) as file:
        models = {model["name"]: model for model in json.load(file)["models"]}
    tokens_list = [int(t) for t in args.tokens.split(",")]
    rows = []
    for peer, kind, names in (("triton_kernels mxfp4 x bf16", TritonLayer, args.triton),
                              ("torch _grouped_mm bf16", TorchLayer, args.torch)):
        for name in filter(None, names.split(",")):
            def report(tokens, us):
                rows.append({"peer": peer, "model": name, "tokens": tokens, "us": us})
                print(f"{peer:28} {name:18} {tokens:6} {us:9.2f} us", flush=True)
            try:
                layer_us(kind, models[name], tokens_list, report)
            except Exception as error:  # a peer that does not run here is no failure of ours
                print(f"{peer} {name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    with open(args.out, "w") as out:
        json.dump({"torch": torch.__version__, "results": rows}, out, indent=1)


if __name__ == "__main__":
    main()
