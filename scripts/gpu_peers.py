#!/usr/bin/env python3
"""Times torch's way of doing the steps of bench_gpu, in CUDA graphs. Usage: gpu_peers.py OUT.json"""
import json
import statistics
import sys

import torch

COPIES = 8


def graph_us(step, copies=COPIES):
    """Median time per call of step(i), i < copies, captured in one graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(copies):
            step(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            step(i)
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / copies)
    return statistics.median(times)


def sort_us(tokens, experts, top_k):
    """Grouping by expert only: no blocks, no padding, no packing."""
    ids = [torch.rand(tokens, experts, device="cuda").topk(top_k)[1].int().flatten() for _ in range(COPIES)]

    def step(i):
        order = torch.argsort(ids[i], stable=True)
        counts = torch.zeros(experts, dtype=torch.int64, device="cuda").scatter_add_(
            0, ids[i].long(), torch.ones_like(ids[i], dtype=torch.int64))
        return order, torch.cumsum(counts, 0)

    return graph_us(step)


def route_us(tokens, experts, top_k):
    logits = [torch.randn(tokens, experts, device="cuda") for _ in range(COPIES)]

    def step(i):
        values, ids = torch.topk(logits[i], top_k)
        return torch.softmax(values, -1), ids.int()

    return graph_us(step)


def quantize_us(rows, columns, block):
    x = [torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(COPIES)]

    @torch.compile
    def quantize(v):
        blocks = v.float().view(rows, -1, block)
        scale = blocks.abs().amax(-1, keepdim=True) / 448
        return (blocks / scale).to(torch.float8_e4m3fn), scale

    return graph_us(lambda i: quantize(x[i]))


def combine_us(tokens, top_k, width):
    y = [torch.randn(tokens, top_k, width, device="cuda", dtype=torch.bfloat16) for _ in range(COPIES)]
    weights = torch.rand(tokens, top_k, device="cuda", dtype=torch.bfloat16)

    def step(i):
        return torch.bmm(weights[:, None], y[i])

    return graph_us(step)


def main():
    rows = []

    def add(step, case, tokens, call, *args):
        try:
            us = call(*args)
        except Exception as error:  # a peer that does not run here is no failure of ours
            print(f"{step} {case}: {type(error).__name__}: {error}", file=sys.stderr)
            return
        rows.append({"step": step, "case": case, "tokens": tokens, "us": us})
        print(f"torch {step:9} {case:40} {tokens:6} {us:9.2f} us", flush=True)

    for tokens in (1, 64, 1024, 16384):
        add("sort", "argsort + count + cumsum, E257 K9", tokens, sort_us, tokens, 257, 9)
    for tokens in (1, 64, 1024, 16384):
        add("route", "topk + softmax, E256 K8 f32", tokens, route_us, tokens, 256, 8)
    for tokens in (64, 1024, 16384):
        add("quantize", "compiled, bf16 to fp8 1x128, 7168", tokens, quantize_us, tokens, 7168, 128)
    for tokens in (64, 1024, 8192):
        add("combine", "bmm, K8 H7168 bf16", tokens, combine_us, tokens, 8, 7168)
    record = {"torch": torch.__version__, "results": rows}
    with open(sys.argv[1], "w") as out:
        json.dump(record, out, indent=1)


if __name__ == "__main__":
    main()
