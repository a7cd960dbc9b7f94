#!/usr/bin/env python3
"""Handles safetensors files without the library, for the demo.

  safetensors_tool.py pick IN OUT NAME...   writes a file with these tensors of IN
  safetensors_tool.py compare A B NAME      prints the rms error of A's tensor against B's (F32)
"""
import array
import json
import math
import struct
import sys


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items()}


def pick(source, target, *names):
    tensors, header, end = read(source), {}, 0
    for name in names:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(tensors[name][2] for name in names))


def compare(a, b, name):
    values = []
    for path in (a, b):
        dtype, shape, data = read(path)[name]
        if dtype != "F32":
            sys.exit(f"{path}: {name} is {dtype}; F32 is needed")
        values.append(array.array("f", data))
    if len(values[0]) != len(values[1]):
        sys.exit(f"{name} has {len(values[0])} and {len(values[1])} values")
    error = math.sqrt(sum((x - y) ** 2 for x, y in zip(*values)) / sum(y * y for y in values[1]))
    print(f"{name}: {len(values[1])} values, rms error {error:.2e} of the rms")


if __name__ == "__main__":
    {"pick": pick, "compare": compare}[sys.argv[1]](*sys.argv[2:])
