#!/usr/bin/env python3
"""Registers and stack of every kernel in a binary, as cuobjdump tells them.

Usage: kernel_resources.py BINARY OUT.json
"""
import json
import re
import shutil
import subprocess
import sys


def kernels(binary):
    tool = shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"
    listing = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    found, arch, name = {}, "", ""
    for line in listing.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found[arch, name] = tuple(map(int, match.groups()))
    readable = subprocess.run(["c++filt"], input="\n".join(name for _, name in found), capture_output=True, text=True,
                              check=True).stdout.splitlines()
    return [{"arch": arch, "kernel": plain_name(name), "registers": registers, "stack_bytes": stack, "static_shared_bytes": shared}
            for ((arch, _), (registers, stack, shared)), name in zip(found.items(), readable)]


def plain_name(demangled):
    """Template arguments stay, namespaces and parameters do not."""
    name = re.sub(r"switchyard::cuda::(sm90::)?|switchyard::|\(anonymous namespace\)::|^void |\((\w+)\)(?=\d|-)", "", demangled)
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def main():
    rows = sorted(kernels(sys.argv[1]), key=lambda row: (row["arch"], row["kernel"]))
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        json.dump({"results": rows}, out)


if __name__ == "__main__":
    main()
