#pragma once
// AVX2 + FMA + F16C as the operations the kernel templates use. Internal linkage throughout, so
// that no instruction of this level leaks into code for another.

#include "cpu/isa_dot.h"

namespace switchyard::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr const char* kName = "avx2";
  static constexpr bool kHasTiles = false;
  static constexpr bool kPairProducts = false;  // of bf16
  static constexpr int kLanes = 8;
  static constexpr int kTileVectors = 2;  // of a register tile; the rest of the panel follows
  static constexpr int kTileVectorsWide = 1;
  static constexpr int kTileVectorsWords = 4;
  static constexpr int kTileRowsInt = 6;
  static constexpr int kTileRowsWords = 3;
  static constexpr bool kSumsInMemory = true;  // 16 registers: f32 sums of int tiles live in L1
  static constexpr int kTileRowsFloat = 5;
  static constexpr int kTileRowsScaled = 3;  // a chain beside each sum
  static constexpr bool kDecodesBesideProducts = false;

  SWITCHYARD_INLINE F zero() { return _mm256_setzero_ps(); }
  SWITCHYARD_INLINE F set(float x) { return _mm256_set1_ps(x); }
  SWITCHYARD_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  SWITCHYARD_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  SWITCHYARD_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  SWITCHYARD_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  SWITCHYARD_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  SWITCHYARD_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  SWITCHYARD_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  /// a * p[0] + c.
  SWITCHYARD_INLINE F fma_at(F a, const float* p, F c) { return fma(a, set(*p), c); }
  /// The second operand wins when one is NaN.
  SWITCHYARD_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  SWITCHYARD_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  /// a < b ? x : y; false for NaN.
  SWITCHYARD_INLINE F select_less(F a, F b, F x, F y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }

  SWITCHYARD_INLINE I load_int(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  SWITCHYARD_INLINE void store_int(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
  }
  SWITCHYARD_INLINE I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  SWITCHYARD_INLINE I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  SWITCHYARD_INLINE I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  SWITCHYARD_INLINE I max_int(I a, I b) { return _mm256_max_epi32(a, b); }
  SWITCHYARD_INLINE I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  SWITCHYARD_INLINE I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  SWITCHYARD_INLINE I shift_left(I a) {
    return _mm256_slli_epi32(a, kBits);
  }
  template <int kBits>
  SWITCHYARD_INLINE I shift_right(I a) {
    return _mm256_srli_epi32(a, kBits);
  }
  SWITCHYARD_INLINE F as_float(I a) { return _mm256_castsi256_ps(a); }
  SWITCHYARD_INLINE I as_int(F a) { return _mm256_castps_si256(a); }
  SWITCHYARD_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  SWITCHYARD_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }

  /// kLanes bytes, words or halves at p, widened.
  SWITCHYARD_INLINE I load_bytes(const void* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  }
  SWITCHYARD_INLINE I load_words(const void* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  SWITCHYARD_INLINE F load_halves(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  /// kLanes words from the low bytes, or high bytes, of kLanes words at p, each as the upper byte
  /// of an e5m2 or (kE4m3) the bits of an e4m3 moved to where f16 has them: the value times 2^-8,
  /// exactly.
  template <bool kHigh, bool kE4m3>
  SWITCHYARD_INLINE F load_fp8(const void* p) {
    __m128i w = _mm_loadu_si128(static_cast<const __m128i*>(p));
    if (!kHigh) w = _mm_slli_epi16(w, 8);
    if (kE4m3) {
      w = _mm_and_si128(_mm_srai_epi16(w, 1), _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
    } else if (kHigh) {
      w = _mm_and_si128(w, _mm_set1_epi16(static_cast<int16_t>(0xff00)));
    }
    return _mm256_cvtph_ps(w);
  }
  /// Low bytes / words of each dword, in order.
  SWITCHYARD_INLINE void store_bytes(void* p, I a) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  SWITCHYARD_INLINE void store_words(void* p, I a) {
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
  }
  SWITCHYARD_INLINE void store_halves(void* p, F a) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  SWITCHYARD_INLINE int32_t reduce_max(I a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
  }
  SWITCHYARD_INLINE int32_t reduce_add(I a) {
    __m128i m = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
  }

  /// Byte look-up in a table of 16, repeated per 128 bits. Indices are 0..15.
  SWITCHYARD_INLINE I table_bytes(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  /// The entry that the low nibble of each byte names, whatever its high nibble holds.
  SWITCHYARD_INLINE I look_up_nibbles(I table, I codes) {
    return _mm256_shuffle_epi8(table, bit_and(codes, set_int(0x0f0f0f0f)));
  }
  /// The low nibbles of the four bytes of each dword as f32: E2M1 or (not kFp4) 0..15.
  template <bool kFp4>
  SWITCHYARD_INLINE void nibbles(I codes, F* out) {
    out[0] = nibble<kFp4>(codes);
    out[1] = nibble<kFp4>(_mm256_srli_epi32(codes, 8));
    out[2] = nibble<kFp4>(_mm256_srli_epi32(codes, 16));
    out[3] = nibble<kFp4>(_mm256_srli_epi32(codes, 24));
  }
  template <bool kFp4>
  SWITCHYARD_INLINE F nibble(I codes) {
    if (!kFp4) return _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(15)));
    const F magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const I sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(8)), 28);
    return _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign));
  }

  /// Corrections are two words: of columns 0 and 1, and 2 and 3, of each four (kernels.h).
  static constexpr bool kWordCorrections = true;
  SWITCHYARD_INLINE I times_zeros(I zeros, I correction) {
    return _mm256_mullo_epi16(zeros, correction);
  }

  struct Words {
    I even, odd;
  };
  /// Bytes less 128 as words: the even ones, the odd ones.
  SWITCHYARD_INLINE Words words_less_128(I bytes) {
    const I offset = _mm256_set1_epi16(128);
    return {_mm256_sub_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(255)), offset),
            _mm256_sub_epi16(_mm256_srli_epi16(bytes, 8), offset)};
  }

  /// Words, and bytes (unsigned times signed), of which neighbours' products are added.
  SWITCHYARD_INLINE I multiply_add_words(I a, I b) { return _mm256_madd_epi16(a, b); }
  SWITCHYARD_INLINE I multiply_add_bytes(I a, I b) { return _mm256_maddubs_epi16(a, b); }
  SWITCHYARD_INLINE I add_words(I a, I b) { return _mm256_add_epi16(a, b); }
  template <IntBytes kBytes>
  using Dot = MultiplyAddDot<Avx2, kBytes>;
};

}  // namespace
}  // namespace switchyard::cpu
