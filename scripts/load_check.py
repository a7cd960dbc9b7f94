#!/usr/bin/env python3
"""Times load, pack and run of a layer as large as gpt-oss-120b's (1.7 GB), from the page cache, and its peak memory.

Usage: load_check.py PATH_TO_SWITCHYARD   (needs 1.8 GB in the temporary folder)
"""
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

EXPERTS, HIDDEN, INNER, TOP_K, TOKENS = 128, 2880, 2880, 4, 4
CONFIG = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_act": "silu", "num_hidden_layers": 1,
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K,
    "quantization_config": {"quant_method": "mxfp4"},
}


def bf16(count):
    """Around 0.01, either sign."""
    low, high = random.randbytes(count), random.randbytes(count)
    out = bytearray(2 * count)
    out[0::2], out[1::2] = low, bytes(0x3C | byte & 0x80 for byte in high)
    return bytes(out)


def scales(count):
    return bytes(118 + byte % 4 for byte in random.randbytes(count))


def write(path, tensors):
    """tensors: name -> (dtype, shape, bytes per element, make(count))."""
    header, end = {}, 0
    for name, (dtype, shape, width, _) in tensors.items():
        count = width
        for extent in shape:
            count *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (_, _, width, make) in tensors.items():
            begin, stop = header[name]["data_offsets"]
            left = (stop - begin) // width
            while left > 0:
                file.write(make(min(left, 1 << 24)))
                left -= 1 << 24


def main():
    switchyard = pathlib.Path(sys.argv[1]).resolve()
    random.seed(1)
    mlp = "model.layers.0.mlp."
    tensors = {mlp + "router.weight": ("BF16", [EXPERTS, HIDDEN], 2, bf16),
               mlp + "router.bias": ("BF16", [EXPERTS], 2, bf16)}
    for name, rows, cols in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
        experts = mlp + "experts." + name
        tensors[experts + "_blocks"] = ("U8", [EXPERTS, rows, cols // 32, 16], 1, random.randbytes)
        tensors[experts + "_scales"] = ("U8", [EXPERTS, rows, cols // 32], 1, scales)
        tensors[experts + "_bias"] = ("BF16", [EXPERTS, rows], 2, bf16)
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder)
        (model / "config.json").write_text(json.dumps(CONFIG))
        write(model / "model.safetensors", tensors)
        write(model / "in.safetensors", {"hidden_states": ("BF16", [TOKENS, HIDDEN], 2, bf16)})
        print(f"layer of {os.path.getsize(model / 'model.safetensors') / 1e6:.0f} MB")
        for _ in range(3):
            begin = time.monotonic()
            child = subprocess.Popen([switchyard, "run", model, "--layer", "0", "--backend", "cpu", "--input",
                                      model / "in.safetensors", "--output", model / "out.safetensors"])
            _, status, usage = os.wait4(child.pid, 0)
            if status != 0:
                sys.exit(1)
            print(f"load, pack and run: {time.monotonic() - begin:.2f} s, peak memory {usage.ru_maxrss / 1e3:.0f} MB "
                  "(pages of the mapped file that are still counted included)")


if __name__ == "__main__":
    main()
