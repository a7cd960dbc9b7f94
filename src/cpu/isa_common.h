#pragma once
// What the ISA levels share. Internal linkage, like all code compiled for one level.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define SWITCHYARD_INLINE static inline __attribute__((always_inline))

namespace switchyard::cpu {
namespace {

/// bf16 of E2M1 codes, of 0..15, and of 0..15 less 8.
alignas(32) constexpr uint16_t kFp4Bf16[16] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
                                               0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0,
                                               0xc000, 0xc040, 0xc080, 0xc0c0};
alignas(32) constexpr uint16_t kNibbleBf16[16] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
                                                  0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130,
                                                  0x4140, 0x4150, 0x4160, 0x4170};
alignas(32) constexpr uint16_t kInt4Bf16[16] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                                0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040,
                                                0x4080, 0x40a0, 0x40c0, 0x40e0};

/// How bytes of weights meet the dot product: up to 24 as they are, or any byte, or any byte made
/// signed words beforehand (words_less_128 and widen_block).
enum class IntBytes { kNarrow, kWide, kWords };

/// 32 signed bytes as words: the even ones of each four, then the odd ones.
SWITCHYARD_INLINE void widen_block(const int8_t* values, int8_t* out) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), even);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), _mm256_srai_epi16(bytes, 8));
}

/// Sums of 16 signed bytes: those at positions 0 and 1 of each four, and those at 2 and 3.
struct ByteSums {
  int16_t first, second;
};
SWITCHYARD_INLINE ByteSums sum_bytes(const int8_t* values) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  __m128i sums = _mm_maddubs_epi16(_mm_set1_epi8(1), bytes);
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
  ByteSums result;
  const int32_t both = _mm_cvtsi128_si32(sums);
  __builtin_memcpy(&result, &both, sizeof(result));
  return result;
}

}  // namespace
}  // namespace switchyard::cpu
