#!/usr/bin/env python3
"""Counts the instructions of the CPU kernels' inner loops: one block of 32 columns of a register tile.

Usage: inner_loops.py [BUILD_DIR]    (default build/cpu; needs its kernels_*.cpp.o and objdump)
The loop is the longest backward jump of the tile's function. "MAC/instr" is multiply-adds per instruction of any kind.
"""
import pathlib
import re
import subprocess
import sys

VALUES = ("fp4", "int4", "int8", "fp8_e4m3", "fp8_e5m2", "bf16", "f16", "f32")
BYTES = ("bytes to 24", "any bytes", "words")
# Per level: lanes, and the tiles to show as (values, rows of activations); the largest of each, and that of one row (decode).
LEVELS = {
    "avx2": (8, ("fp4 int8", "int8 int8", "fp8_e4m3 f32", "bf16 f32")),
    "avx512": (16, ("fp4 int8", "int8 int8")),
    "avx512_vnni": (16, ("fp4 int8", "int8 int8", "fp8_e4m3 f32", "bf16 f32")),
    "avx512_bf16": (16, ("fp4 int8", "fp4 bf16", "bf16 bf16")),
}
PRODUCT = re.compile(r"vpdpbusd|vpmaddubsw|vpmaddwd|vfmadd|vdpbf16ps")
TILE = re.compile(r"(int|float)_tile<(.*)>\(")


def tile_of(signature):
    """(values x rows, detail, num_vecs, num_rows) of a tile's function, or None."""
    match = TILE.search(signature)
    if match is None:
        return None
    arguments = match[2]
    vecs, rows = (int(x) for x in re.search(r"(\d+), (\d+)$", arguments).groups())
    values = VALUES[int(re.search(r"PanelValues\)(\d)", arguments)[1])]
    if match[1] == "int":
        if "false, false" not in arguments:  # scales per 16, or zero points
            return None
        return f"{values} int8", BYTES[int(re.search(r"IntBytes\)(\d)", arguments)[1])], vecs, rows
    return f"{values} {'bf16' if 'PairProducts' in arguments else 'f32'}", "", vecs, rows


def functions(path):
    """(signature, [(address, mnemonic, operands)]) of an object file."""
    text = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    for part in re.split(r"\n\n", text):
        lines = part.strip().splitlines()
        if not lines or not lines[0].endswith(">:"):
            continue
        code = []
        for line in lines[1:]:
            match = re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line)
            if match:
                code.append((int(match[1], 16), match[2], match[3]))
        yield lines[0], code


def loop_of(code):
    """The instructions of the longest backward jump."""
    best = []
    for i, (address, mnemonic, operands) in enumerate(code):
        target = re.match(r"([0-9a-f]+) <", operands)
        if mnemonic.startswith("j") and target and int(target[1], 16) < address:
            begin = next((k for k, line in enumerate(code) if line[0] == int(target[1], 16)), i)
            if i + 1 - begin > len(best):
                best = code[begin:i + 1]
    return best


def counts(loop):
    kinds = {"products": 0, "other vector": 0, "loads": 0, "stores": 0, "prefetch": 0, "scalar": 0}
    for _, mnemonic, operands in loop:
        if PRODUCT.match(mnemonic):
            kinds["products"] += 1
        elif mnemonic.startswith("prefetch"):
            kinds["prefetch"] += 1
        elif not mnemonic.startswith("v"):
            kinds["scalar"] += 1
        elif re.match(r"vmov|vpbroadcast|vbroadcast", mnemonic) and "(" in operands:
            kinds["stores" if operands.endswith(")") else "loads"] += 1
        else:
            kinds["other vector"] += 1
    return kinds


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build/cpu")
    print("| level | weights x rows | tile | MACs | products | other vector | loads | stores | prefetch | scalar | MAC/instr |")
    print("|---" * 11 + "|")
    for level, (lanes, wanted) in LEVELS.items():
        path = next(build.rglob(f"kernels_{level}.cpp.o"), None)
        if path is None:
            sys.exit(f"no kernels_{level}.cpp.o under {build}; build the library first")
        best = {}
        for signature, code in functions(path):
            tile = tile_of(signature)
            if tile is None or tile[0] not in wanted:
                continue
            key = (*tile[:2], tile[3] == 1)
            if key not in best or tile[2] * tile[3] > best[key][0]:
                best[key] = (tile[2] * tile[3], tile, code)
        for (name, detail, _), (_, tile, code) in sorted(best.items(), key=lambda item: wanted.index(item[0][0])):
            loop = loop_of(code)
            kinds = counts(loop)
            macs = 32 * lanes * tile[2] * tile[3]
            what = name.replace(" ", " x ") + (f", {detail}" if detail and "int8 " in name else "")
            print(f"| {level} | {what} | {tile[3]} {'row' if tile[3] == 1 else 'rows'} x {tile[2] * lanes} outputs | {macs} | "
                  + " | ".join(str(n) for n in kinds.values()) + f" | {macs / max(len(loop), 1):.1f} |")


if __name__ == "__main__":
    main()
