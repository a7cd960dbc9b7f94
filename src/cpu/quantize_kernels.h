#pragma once
// The inner loops of the quantize step, one set per ISA level.

#include <cstdint>

namespace switchyard::cpu {

/// One row segment: `count` inputs in blocks of `block` columns.
struct QuantizeSegment {
  const void* input;
  const float* channel_scale;  // null: all 1
  int64_t count;
  int64_t block;
};

/// Codes that the kernels know; two of them to a byte for the last two.
enum class QuantizeCode { kE4m3, kInt8, kE2m1, kInt4 };

/// Tables are indexed by the input's DataType (f32, f16, bf16 are 0, 1, 2).
struct QuantizeKernels {
  /// Raises amax_bits[b] to the largest magnitude of block b, as bits.
  void (*amax[3])(const QuantizeSegment& segment, uint32_t* amax_bits);
  /// Codes under inverses[b]; where that is 0, zero codes.
  void (*encode[3][4])(const QuantizeSegment& segment, const float* inverses, uint8_t* codes);
};

extern const QuantizeKernels kQuantizeBaseline;  // plain x86-64
extern const QuantizeKernels kQuantizeAvx2;

}  // namespace switchyard::cpu
