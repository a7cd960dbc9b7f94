#!/usr/bin/env python3
"""Times whole MoE layers of torch and triton_kernels in CUDA graphs of several layers with their own weights and routing.

Usage: gpu_layer_peers.py OUT.json [TOKENS,...]. triton_kernels is OpenAI's package (shipped inside vLLM's wheel): put it
on PYTHONPATH, else its rows are left out. Torch's layers are routing, `_grouped_mm` twice, SwiGLU and a sum: what torch
alone offers in bf16. Sizes that are no multiple of 256 are padded for triton_kernels, as vLLM pads them."""
import json
import sys

import torch

from gpu_peers import graph_us

LAYERS = 4
# name: experts, top_k, hidden, intermediate, biases and clamped SwiGLU
MODELS = {
    "gpt-oss-120b": (128, 4, 2880, 2880, True),
    "deepseek-r1-tp8": (256, 8, 7168, 256, False),
    "deepseek-r1-ep8": (32, 8, 7168, 2048, False),
    "qwen3-30b-a3b": (128, 8, 2048, 768, False),
}
TRITON_MODELS = ("gpt-oss-120b", "deepseek-r1-tp8", "deepseek-r1-ep8")
TORCH_MODELS = ("qwen3-30b-a3b", "deepseek-r1-ep8")


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

    def __init__(self, experts, top_k, hidden, intermediate, biased):
        self.experts, self.top_k = experts, top_k
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

    def __init__(self, experts, top_k, hidden, intermediate, _biased):
        self.experts, self.top_k, self.hidden = experts, top_k, hidden
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
    layers = [kind(*MODELS[model]) for _ in range(LAYERS)]
    for tokens in tokens_list:
        x = torch.randn(tokens, layers[0].hidden, device="cuda", dtype=torch.bfloat16)
        logits = [torch.randn(tokens, MODELS[model][0], device="cuda", dtype=torch.bfloat16) for _ in range(2 * LAYERS)]
        # Twice round: each weight has left the L2 before it is read again.
        report(tokens, graph_us(lambda i: layers[i % LAYERS](x, logits[i]), 2 * LAYERS))
    del layers
    torch.cuda.empty_cache()


def main():
    tokens_list = [int(t) for t in (sys.argv[2] if len(sys.argv) > 2 else "1,8,64,256,1024,8192").split(",")]
    rows = []
    for peer, kind, models in (("triton_kernels mxfp4 x bf16", TritonLayer, TRITON_MODELS),
                               ("torch _grouped_mm bf16", TorchLayer, TORCH_MODELS)):
        for model in models:
            def report(tokens, us):
                rows.append({"peer": peer, "model": model, "tokens": tokens, "us": us})
                print(f"{peer:28} {model:18} {tokens:6} {us:9.2f} us", flush=True)
            try:
                layer_us(kind, model, tokens_list, report)
            except Exception as error:  # a peer that does not run here is no failure of ours
                print(f"{peer} {model}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    with open(sys.argv[1], "w") as out:
        json.dump({"torch": torch.__version__, "results": rows}, out, indent=1)


if __name__ == "__main__":
    main()
