#!/usr/bin/env python3
"""Writes src/cuda/sm90/wgmma.cuh: the wgmma instructions that the Hopper kernels use.

CCCL has no wgmma; everything about one instruction is its shape, its types and how many registers
it names, so the headers are written by this script:
  tools/generate_wgmma.py > src/cuda/sm90/wgmma.cuh
  tools/generate_wgmma.py fp4_prefill > src/cuda/sm90/fp4_prefill_wgmma.cuh
The second has what those kernels alone use, so that others need not be compiled for its sake.
"""

import sys

SHAPES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
FP4_PREFILL_SHAPES = (80, 144)
# name, PTX suffix, element type of the accumulator, asm constraint, operand tails (shared, register)
TYPES = (
    ("kBf16", "k16.f32.bf16.bf16", "float", "f", ", 1, 1, 0, 0", ", 1, 1, 0"),
    ("kE4m3", "k32.f32.e4m3.e4m3", "float", "f", ", 1, 1", ", 1, 1"),
    ("kS8", "k32.s32.s8.s8", "int32_t", "r", "", ""),
)

HEAD = """#pragma once
// Written by tools/generate_wgmma.py. One struct per accumulator type and N: D[64][kN] (+)= A . B^T.
// Registers of a thread: PTX ISA, "Asynchronous warpgroup level matrix instructions".

#include <cstdint>

namespace switchyard::cuda::sm90 {

/// bf16 and E4M3 accumulate in f32, S8 in s32.
enum class MmaType { kBf16, kE4m3, kS8 };

template <MmaType kType, int kN>
struct Wgmma;

// clang-format off"""

FP4_PREFILL_HEAD = """#pragma once
// Written by tools/generate_wgmma.py: instructions of 4-bit prefill beside those of wgmma.cuh.

#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {

// clang-format off"""

TAIL = """// clang-format on

}  // namespace switchyard::cuda::sm90"""


def instruction(name, suffix, element, constraint, shared_tail, register_tail, n):
    count = n // 2
    d = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+{constraint}"(d[{i}])' for i in range(count))

    def call(arguments, first, operands, inputs, tail):
        accumulate = first + operands.count("%")
        return (
            f"  __device__ __forceinline__ static void {arguments} {{\n"
            f'    asm volatile("{{.reg .pred p; setp.ne.b32 p, %{accumulate}, 0; '
            f"wgmma.mma_async.sync.aligned.m64n{n}{suffix} {{{d}}}, {operands}, p{tail};}}\"\n"
            f'        : {outputs} : {inputs}, "r"(static_cast<int>(accumulate)));\n  }}'
        )

    a = ", ".join(f"%{count + i}" for i in range(4))
    ss = call(
        f"ss({element} (&d)[{count}], uint64_t a, uint64_t b, bool accumulate)",
        count, f"%{count}, %{count + 1}", '"l"(a), "l"(b)', shared_tail)
    rs = call(
        f"rs({element} (&d)[{count}], const uint32_t (&a)[4], uint64_t b, bool accumulate)",
        count, f"{{{a}}}, %{count + 4}",
        '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)', register_tail)
    return (f"template <> struct Wgmma<MmaType::{name}, {n}> {{\n"
            f"  using Accumulator = {element}[{count}];\n{ss}\n{rs}\n}};")


fp4_prefill = sys.argv[1:] == ["fp4_prefill"]
print(FP4_PREFILL_HEAD if fp4_prefill else HEAD)
for entry in TYPES[:2] if fp4_prefill else TYPES:
    for n in FP4_PREFILL_SHAPES if fp4_prefill else SHAPES:
        print(instruction(*entry, n))
print(TAIL)
