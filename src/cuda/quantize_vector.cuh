#pragma once
// Codes and scales in registers: what every kernel that quantises does once it has eight values.
// The bits are those of core/block_quantize.h.

#include "core/block_quantize.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {

inline constexpr uint32_t kAllLanes = ~0u;

/// A format that a kernel was compiled for, and the rest of BlockQuantization.
template <Format kFormat>
__device__ BlockScale device_block_scale(BlockQuantization how, uint32_t amax_bits) {
  how.format = kFormat;  // a constant: the switches on it vanish
  if constexpr (kFormat == Format::kNvfp4) {
    // detail::nvfp4_scale with the hardware's conversions.
    if (amax_bits >= kInfinityBits) return {f32_from_bits(kQuietNanBits), 0.0f};
    const float amax = amax_bits < kMinNormalBits ? 0.0f : f32_from_bits(amax_bits);
    const uint32_t code = pack_fp8_e4m3(amax / (kFp4E2m1Max * how.global_scale), 0.0f) & 0xffu;
    const float stored = unpack_fp8_e4m3(code);
    const float scale = stored * how.global_scale;
    return {stored, scale >= f32_from_bits(kMinNormalBits) ? 1.0f / scale : 0.0f};
  } else {
    return block_scale(how, amax_bits);
  }
}

inline __device__ void store_scale(void* scales, DataType type, int64_t index, float stored) {
  switch (type) {
    case DataType::kF32: static_cast<float*>(scales)[index] = stored; return;
    case DataType::kBf16: static_cast<uint16_t*>(scales)[index] = f32_to_bf16(stored); return;
    case DataType::kF8E4m3:
      static_cast<uint8_t*>(scales)[index] = static_cast<uint8_t>(pack_fp8_e4m3(stored, 0.0f));
      return;
    default:  // E8M0: a power of two, or NaN; its exponent field is the code
      static_cast<uint8_t*>(scales)[index] = static_cast<uint8_t>(__float_as_uint(stored) >> 23);
  }
}

/// Bytes kByte of four words.
template <int kByte>
__device__ uint32_t gather_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  constexpr uint32_t kPair = kByte | (4u + kByte) << 4;
  return __byte_perm(__byte_perm(a, b, kPair), __byte_perm(c, d, kPair), 0x5410);
}

/// Integers, ties to even: the low bits of the sum with 1.5 * 2^23. No product exceeds the largest
/// code by half, because the scale comes from the largest value.
inline __device__ uint32_t integer_code(float product) {
  return __float_as_uint(product + 12582912.0f);
}

/// E2M1 magnitude of m in [0, 7), plus 298, in the low byte and up. A float with the exponent of
/// max(m, 1) and 22 binades above has the element's last place as its own, so one fma rounds; the
/// sum's last bits count half quanta and its exponent says which quantum.
inline __device__ uint32_t fp4_magnitude(float m) {
  const float quantum = __uint_as_float(__float_as_uint(fmaxf(m, 1.0f)) & 0x7f800000u);
  const uint32_t sum = __float_as_uint(fmaf(quantum, 4194304.0f, m));
  return sum + (sum >> 22);
}
/// clips: a magnitude may reach 7.
inline __device__ uint32_t encode_fp4(const float (&v)[kVector], float inverse, bool clips) {
  float m[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) m[j] = flushed_product(fabsf(v[j]), inverse);
  if (clips) {
#pragma unroll
    for (float& magnitude : m) magnitude = fminf(magnitude, kFp4E2m1Max);
  }
  uint32_t code[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) code[j] = fp4_magnitude(m[j]);
  const uint32_t even = gather_bytes<0>(code[0], code[2], code[4], code[6]);
  const uint32_t odd = gather_bytes<0>(code[1], code[3], code[5], code[7]);
  constexpr uint32_t kBias = (298u & 0xffu) * 0x01010101u;
  const auto signs = [&](int first) {
    return gather_bytes<3>(__float_as_uint(v[first]), __float_as_uint(v[first + 2]),
                           __float_as_uint(v[first + 4]), __float_as_uint(v[first + 6])) &
           0x80808080u;
  };
  return (even + 16u * odd - 17u * kBias) | signs(0) >> 4 | signs(1);
}

/// Codes of eight values, the first in the low bits: 64 bits, or 32 of 4-bit formats. A block with
/// inverse 0 decodes to NaN, or to zeros.
template <Format kFormat>
__device__ uint2 encode(const float (&v)[kVector], float inverse, bool clips = true) {
  uint2 codes{0, 0};
  uint32_t zero = 0;
  if constexpr (kFormat == Format::kMxfp4 || kFormat == Format::kNvfp4) {
    codes.x = encode_fp4(v, inverse, clips);
  } else {
    float x[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[j] = flushed_product(v[j], inverse);
    if constexpr (kFormat == Format::kInt4) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        codes.x |= ((integer_code(x[j]) + kInt4ZeroPoint) & 15u) << (4 * j);
      }
      zero = kInt4ZeroPoint * 0x11111111u;
    } else if constexpr (kFormat == Format::kInt8) {
      uint32_t code[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) code[j] = integer_code(x[j]);
      codes = {gather_bytes<0>(code[0], code[1], code[2], code[3]),
               gather_bytes<0>(code[4], code[5], code[6], code[7])};
    } else {
      codes = {__byte_perm(pack_fp8_e4m3(x[0], x[1]), pack_fp8_e4m3(x[2], x[3]), 0x5410),
               __byte_perm(pack_fp8_e4m3(x[4], x[5]), pack_fp8_e4m3(x[6], x[7]), 0x5410)};
    }
  }
  return inverse == 0.0f ? uint2{zero, zero} : codes;
}

/// Largest magnitude; NaN or infinity win, and a subnormal one is zero to block_scale.
inline __device__ uint32_t largest(const float (&v)[kVector]) {
  float amax = max_magnitude(v[0], v[1]);
#pragma unroll
  for (int j = 2; j < kVector; ++j) amax = max_magnitude(amax, v[j]);
  return __float_as_uint(amax) & 0x7fffffffu;
}

/// Blocks of 16 or of 32 << n columns, up to 256. A warp has 128 neighbouring vectors, vector
/// i * 32 + lane in register i of a lane, and the lanes of a block share the work: after reduce()
/// every lane has the maxima of kScales blocks, not of four, and makes their scales alone.
struct SharedBlocks {
  static constexpr int kPerLane = 4;
  static constexpr int kVectors = 32 * kPerLane;

  /// amax of the lane's vectors in; of block i = lane % 4 out (kPair: of i = lane % 2 and 2 + i).
  template <bool kPair>
  __device__ static void reduce(uint32_t (&amax)[kPerLane], int lanes_per_block) {
    const unsigned lane = threadIdx.x % 32;
    const bool odd = (lane & 1) != 0;
#pragma unroll
    for (int i = 0; i < kPerLane; i += 2) {
      const uint32_t mine = odd ? amax[i + 1] : amax[i];
      const uint32_t other = odd ? amax[i] : amax[i + 1];
      amax[i / 2] = max(mine, __shfl_xor_sync(kAllLanes, other, 1));
    }
    if constexpr (!kPair) {
      const bool upper = (lane & 2) != 0;
      const uint32_t mine = upper ? amax[1] : amax[0];
      const uint32_t other = upper ? amax[0] : amax[1];
      amax[0] = max(mine, __shfl_xor_sync(kAllLanes, other, 2));
      for (int width = 4; width < lanes_per_block; width *= 2) {
        amax[0] = max(amax[0], __shfl_xor_sync(kAllLanes, amax[0], width));
      }
    }
  }
  /// The register whose block entry `s` of the reduced maxima is.
  template <bool kPair>
  __device__ static int register_of(int s) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return kPair ? 2 * s + lane % 2 : lane % 4;
  }
  /// What the lane that made the scale of register i's block has in `mine`.
  template <bool kPair>
  __device__ static float scale_of_register(const float (&mine)[kPair ? 2 : 1], int i) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return kPair ? __shfl_sync(kAllLanes, mine[kPair ? i / 2 : 0], (lane & ~1) | (i & 1))
                 : __shfl_sync(kAllLanes, mine[0], (lane & ~3) | i);
  }
};

}  // namespace switchyard::cuda
