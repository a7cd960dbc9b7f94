#pragma once
// Eight numbers at a time between memory and f32 registers, with the GPU's own conversions. The
// type is a runtime value that a whole kernel agrees on: a branch costs nothing beside a load.

#include <cuda_runtime.h>

#include <cstdint>

#include "core/number_formats.h"

namespace switchyard::cuda {

inline constexpr int kVector = 8;

__device__ inline float f16_bits_to_f32(uint32_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
  return value;
}
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
/// Two E4M3 codes, saturating; equal to f32_to_fp8_e4m3 for every float (tests/gpu).
__device__ inline uint32_t pack_fp8_e4m3(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return f32_to_fp8_e4m3(low) | static_cast<uint32_t>(f32_to_fp8_e4m3(high)) << 8;
#endif
}
/// The value of an E4M3 code.
__device__ inline float unpack_fp8_e4m3(uint32_t code) {
#if __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(code)));
  return f16_bits_to_f32(halves & 0xffffu);
#else
  return fp8_e4m3_to_f32(static_cast<uint8_t>(code));
#endif
}
/// Largest magnitude; a NaN wins.
__device__ inline float max_magnitude(float a, float b) {
  float larger;
  asm("{.reg .f32 x, y; abs.f32 x, %1; abs.f32 y, %2; max.NaN.f32 %0, x, y;}"
      : "=f"(larger)
      : "f"(a), "f"(b));
  return larger;
}
/// Magnitudes of two bf16 or f16 numbers, and the larger ones of two such pairs.
__device__ inline uint32_t magnitudes_bf16(uint32_t a) {
  uint32_t magnitudes;
  asm("abs.bf16x2 %0, %1;" : "=r"(magnitudes) : "r"(a));
  return magnitudes;
}
__device__ inline uint32_t larger_bf16(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
__device__ inline uint32_t magnitudes_f16(uint32_t a) {
  uint32_t magnitudes;
  asm("abs.f16x2 %0, %1;" : "=r"(magnitudes) : "r"(a));
  return magnitudes;
}
__device__ inline uint32_t larger_f16(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
/// Product of numbers of which subnormal ones count as zero.
__device__ inline float flushed_product(float a, float b) {
  float product;
  asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
  return product;
}

/// Whether vectors of this tensor may be read or written whole.
inline bool vectors_aligned(const void* data, int64_t columns, DataType type) {
  return columns % kVector == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
         element_bytes(type) * kVector % 16 == 0;
}

__device__ inline void unpack_bf16(uint4 raw, float (&v)[kVector]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ inline void unpack_f16(uint4 raw, float (&v)[kVector]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = f16_bits_to_f32(words[i] & 0xffffu);
    v[2 * i + 1] = f16_bits_to_f32(words[i] >> 16);
  }
}

/// One f32, bf16 or f16 number.
__device__ inline float load_one(const void* data, DataType type, int64_t index) {
  switch (type) {
    case DataType::kF32: return static_cast<const float*>(data)[index];
    case DataType::kBf16: return bf16_to_f32(static_cast<const uint16_t*>(data)[index]);
    default: return f16_bits_to_f32(static_cast<const uint16_t*>(data)[index]);
  }
}
__device__ inline void store_one(void* data, DataType type, int64_t index, float value) {
  switch (type) {
    case DataType::kF32: static_cast<float*>(data)[index] = value; return;
    case DataType::kBf16:
      static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
      return;
    default: static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(pack_f16(value, 0.0f));
  }
}

/// Eight numbers as they lie in memory; f32 needs both halves.
struct RawVector {
  uint4 first, second;
};
/// Only loads, so that a kernel can have several of these in flight before it unpacks one.
__device__ inline RawVector load_raw(const void* data, DataType type, int64_t index) {
  RawVector raw{};
  const bool wide = type == DataType::kF32;
  const auto* at =
      reinterpret_cast<const uint4*>(static_cast<const char*>(data) + index * (wide ? 4 : 2));
  raw.first = at[0];
  if (wide) raw.second = at[1];
  return raw;
}
__device__ inline void unpack(const RawVector& raw, DataType type, float (&v)[kVector]) {
  if (type == DataType::kBf16) return unpack_bf16(raw.first, v);
  if (type != DataType::kF32) return unpack_f16(raw.first, v);
  const uint32_t words[kVector] = {raw.first.x,  raw.first.y,  raw.first.z,  raw.first.w,
                                   raw.second.x, raw.second.y, raw.second.z, raw.second.w};
#pragma unroll
  for (int j = 0; j < kVector; ++j) v[j] = __uint_as_float(words[j]);
}

/// Numbers index .. index + 7; those from `end` on are 0. `aligned` says that whole vectors may be
/// read (and that `end` is a multiple of 8 away).
__device__ inline void load_vector(const void* data, DataType type, int64_t index, int64_t end,
                                   bool aligned, float (&v)[kVector]) {
  if (aligned) return unpack(load_raw(data, type, index), type, v);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    v[j] = index + j < end ? load_one(data, type, index + j) : 0.0f;
  }
}

__device__ inline void store_vector(void* data, DataType type, int64_t index, int64_t end,
                                    bool aligned, const float (&v)[kVector]) {
  if (!aligned) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (index + j < end) store_one(data, type, index + j, v[j]);
    }
    return;
  }
  if (type == DataType::kF32) {
    float4* at = reinterpret_cast<float4*>(static_cast<float*>(data) + index);
    at[0] = float4{v[0], v[1], v[2], v[3]};
    at[1] = float4{v[4], v[5], v[6], v[7]};
    return;
  }
  uint4 raw;
  if (type == DataType::kBf16) {
    raw = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
           pack_bf16(v[6], v[7])};
  } else {
    raw = {pack_f16(v[0], v[1]), pack_f16(v[2], v[3]), pack_f16(v[4], v[5]), pack_f16(v[6], v[7])};
  }
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(data) + index) = raw;
}

}  // namespace switchyard::cuda
