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

/// The same for bf16 numbers, two at a time, under a power of two between 2^-126 and
/// kMostPackedInverse. Eight times the magnitude, because then the sum's exponent is a multiple of
/// eight for the smallest quantum and the code needs no correction; the sum counts half quanta in
/// its lowest bits here too.
inline constexpr float kMostPackedInverse = 0x1p100f;  // subnormal numbers still come out as zero
inline __device__ uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}
inline __device__ uint32_t encode_fp4_bf16(uint4 numbers, float inverse, bool clips) {
  constexpr uint32_t kEight = 0x41004100u, kLargest = 0x42404240u;  // 8 and 6 * 8, twice
  constexpr uint32_t k64 = 0x42804280u, kZero = 0x80008000u;
  const uint32_t scale = __byte_perm(__float_as_uint(8.0f * inverse), 0, 0x3232);
  const uint32_t words[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
  uint32_t m[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) m[i] = fma_bf16(words[i] & 0x7fff7fffu, scale, kZero);
  if (clips) {
#pragma unroll
    for (uint32_t& magnitudes : m) asm("min.bf16x2 %0, %0, %1;" : "+r"(magnitudes) : "r"(kLargest));
  }
#pragma unroll
  for (uint32_t& magnitudes : m) {
    const uint32_t quantum = larger_bf16(magnitudes, kEight) & 0x7f807f80u;
    const uint32_t sum = fma_bf16(quantum, k64, magnitudes);
    magnitudes = (sum + (sum >> 6)) & 0x00070007u;
  }
  uint32_t halves[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // codes 0, 2, 1, 3 of a pair of words, a byte each
    const uint32_t signs = __byte_perm(words[2 * i], words[2 * i + 1], 0x7351) >> 4 & 0x08080808u;
    const uint32_t codes = (m[2 * i] + (m[2 * i + 1] << 8)) | signs;
    halves[i] = codes + (codes >> 12);
  }
  return __byte_perm(halves[0], halves[1], 0x5410);
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

/// Blocks of 16 or of 32 << n columns, up to 256. A warp has 32 * kPerLane neighbouring vectors,
/// vector i * 32 + lane in register i of a lane, and kShare lanes of a block share its work: after
/// reduce() every lane has the maxima of kScales blocks, not of kPerLane, and makes their scales
/// alone.
template <int kPerLane, int kShare>
struct SharedBlocks {
  static_assert(kShare == 2 || (kShare == 4 && kPerLane == 4));
  static constexpr int kVectors = 32 * kPerLane;
  static constexpr int kScales = kPerLane / kShare;

  /// amax of the lane's vectors in; of the block of register_of(s) in amax[s] out.
  __device__ static void reduce(uint32_t (&amax)[kPerLane], int lanes_per_block) {
    exchange<kPerLane>(amax, 1);
    if constexpr (kShare == 4) exchange<2>(amax, 2);
    for (int width = kShare; width < lanes_per_block; width *= 2) {
#pragma unroll
      for (int s = 0; s < kScales; ++s) {
        amax[s] = max(amax[s], __shfl_xor_sync(kAllLanes, amax[s], width));
      }
    }
  }
  /// The register whose block entry `s` of the reduced maxima is.
  __device__ static int register_of(int s) { return kShare * s + lane() % kShare; }
  /// What the lane that made the scale of register i's block has in `mine`.
  __device__ static float scale_of_register(const float (&mine)[kScales], int i) {
    return __shfl_sync(kAllLanes, mine[i / kShare], (lane() & -kShare) | (i % kShare));
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  /// Lanes that differ in `bit` keep one of two neighbouring registers each.
  template <int kCount>
  __device__ static void exchange(uint32_t (&amax)[kPerLane], int bit) {
    const bool upper = (lane() & bit) != 0;
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const uint32_t mine = upper ? amax[i + 1] : amax[i];
      const uint32_t other = upper ? amax[i] : amax[i + 1];
      amax[i / 2] = max(mine, __shfl_xor_sync(kAllLanes, other, bit));
    }
  }
};

}  // namespace switchyard::cuda
