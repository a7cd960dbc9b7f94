#pragma once
// AVX-512 F/BW/VL/DQ as the operations the kernel templates use (see isa_avx2.h for their meaning).

// g++ 12's own _mm512_undefined_* and its users trip these when inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "cpu/isa_dot.h"

namespace switchyard::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr const char* kName = "avx512";
  static constexpr bool kHasTiles = false;
  static constexpr bool kPairProducts = false;
  static constexpr int kLanes = 16;
  static constexpr int kTileVectors = 2;
  static constexpr int kTileVectorsWide = 2;
  static constexpr int kTileVectorsWords = 2;
  static constexpr int kTileRowsInt = 4;
  static constexpr int kTileRowsWords = 6;
  static constexpr bool kSumsInMemory = false;
  static constexpr int kTileRowsFloat = 8;  // bf16, 64 rows: 116 Gop/s; tiles of 12: 112
  static constexpr int kTileRowsScaled = 6;
  /// Every tile of floats decodes its weights again, on pipes that the products leave idle, rather
  /// than read a decoded slab (Zen 4, FP8, 16 rows: 113 against 97 Gop/s).
  static constexpr bool kDecodesBesideProducts = true;

  SWITCHYARD_INLINE F zero() { return _mm512_setzero_ps(); }
  SWITCHYARD_INLINE F set(float x) { return _mm512_set1_ps(x); }
  SWITCHYARD_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  SWITCHYARD_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  SWITCHYARD_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  SWITCHYARD_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  SWITCHYARD_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  SWITCHYARD_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  SWITCHYARD_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  /// a * p[0] + c. The broadcast inside the product is the load's work; g++ would make it an
  /// instruction, which takes a turn of the pipes (Zen 4, one fp4 row: 2.0 against 1.7 cycles).
  SWITCHYARD_INLINE F fma_at(F a, const float* p, F c) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(a), "m"(*p));
    return c;
  }
  SWITCHYARD_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  SWITCHYARD_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  SWITCHYARD_INLINE F select_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }

  SWITCHYARD_INLINE I load_int(const void* p) { return _mm512_loadu_si512(p); }
  SWITCHYARD_INLINE void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
  SWITCHYARD_INLINE I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  SWITCHYARD_INLINE I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  SWITCHYARD_INLINE I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  SWITCHYARD_INLINE I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  SWITCHYARD_INLINE I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  SWITCHYARD_INLINE I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  template <int kBits>
  SWITCHYARD_INLINE I shift_left(I a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  SWITCHYARD_INLINE I shift_right(I a) {
    return _mm512_srli_epi32(a, kBits);
  }
  SWITCHYARD_INLINE F as_float(I a) { return _mm512_castsi512_ps(a); }
  SWITCHYARD_INLINE I as_int(F a) { return _mm512_castps_si512(a); }
  SWITCHYARD_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  SWITCHYARD_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }

  SWITCHYARD_INLINE I load_bytes(const void* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  SWITCHYARD_INLINE I load_words(const void* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  SWITCHYARD_INLINE F load_halves(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  template <bool kHigh, bool kE4m3>
  SWITCHYARD_INLINE F load_fp8(const void* p) {
    __m256i w = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    if (!kHigh) w = _mm256_slli_epi16(w, 8);
    if (kE4m3) {
      w = _mm256_and_si256(_mm256_srai_epi16(w, 1),
                           _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
    } else if (kHigh) {
      w = _mm256_and_si256(w, _mm256_set1_epi16(static_cast<int16_t>(0xff00)));
    }
    return _mm512_cvtph_ps(w);
  }
  SWITCHYARD_INLINE void store_bytes(void* p, I a) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a));
  }
  SWITCHYARD_INLINE void store_words(void* p, I a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
  }
  SWITCHYARD_INLINE void store_halves(void* p, F a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  SWITCHYARD_INLINE int32_t reduce_max(I a) { return _mm512_reduce_max_epi32(a); }
  SWITCHYARD_INLINE int32_t reduce_add(I a) { return _mm512_reduce_add_epi32(a); }

  SWITCHYARD_INLINE I table_bytes(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  SWITCHYARD_INLINE I look_up_nibbles(I table, I codes) {
    return _mm512_shuffle_epi8(table, bit_and(codes, set_int(0x0f0f0f0f)));
  }
  /// The low nibbles of the four bytes of each dword as bf16, by VPERMW: it looks at five bits of
  /// a word, so the table is there twice. First and second pair, the first of each in the upper
  /// half.
  SWITCHYARD_INLINE void nibble_pairs(I table, I codes, I* out) {
    const I first = _mm512_set1_epi64(0x0404050500000101);
    const I second = _mm512_set1_epi64(0x0606070702020303);
    out[0] = _mm512_permutexvar_epi16(pick_bytes(codes, first), table);
    out[1] = _mm512_permutexvar_epi16(pick_bytes(codes, second), table);
  }
  /// Bytes 0..7 of each 8 to where `pattern` names them.
  SWITCHYARD_INLINE I pick_bytes(I bytes, I pattern) {
    const I second_half = _mm512_set4_epi32(0x08080808, 0x08080808, 0, 0);
    return _mm512_shuffle_epi8(bytes, _mm512_add_epi8(pattern, second_half));
  }
  /// Twice the 16 entries.
  SWITCHYARD_INLINE I table_words(const uint16_t* table) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
  }
  /// As f32, by VPERMW too: one look-up serves two nibbles, and taking them apart needs no pipe
  /// that look-ups need.
  template <bool kFp4>
  SWITCHYARD_INLINE void nibbles(I codes, F* out) {
    const I table = table_words(kFp4 ? kFp4Bf16 : kNibbleBf16);
    const I even = _mm512_permutexvar_epi16(codes, table);
    const I odd = _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 8), table);
    const I upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    out[0] = as_float(_mm512_slli_epi32(even, 16));
    out[1] = as_float(_mm512_slli_epi32(odd, 16));
    out[2] = as_float(_mm512_and_si512(even, upper));
    out[3] = as_float(_mm512_and_si512(odd, upper));
  }

  static constexpr bool kWordCorrections = true;
  SWITCHYARD_INLINE I times_zeros(I zeros, I correction) {
    return _mm512_mullo_epi16(zeros, correction);
  }

  struct Words {
    I even, odd;
  };
  /// Bytes less 128 as words: the even ones, the odd ones.
  SWITCHYARD_INLINE Words words_less_128(I bytes) {
    const I offset = _mm512_set1_epi16(128);
    return {_mm512_sub_epi16(_mm512_and_si512(bytes, _mm512_set1_epi16(255)), offset),
            _mm512_sub_epi16(_mm512_srli_epi16(bytes, 8), offset)};
  }

  /// Every byte less kValue.
  template <int kValue>
  SWITCHYARD_INLINE I less_each(I bytes) {
    return _mm512_sub_epi8(bytes, _mm512_set1_epi8(static_cast<char>(kValue)));
  }
  SWITCHYARD_INLINE I multiply_add_words(I a, I b) { return _mm512_madd_epi16(a, b); }
  SWITCHYARD_INLINE I multiply_add_bytes(I a, I b) { return _mm512_maddubs_epi16(a, b); }
  SWITCHYARD_INLINE I add_words(I a, I b) { return _mm512_add_epi16(a, b); }
  template <IntBytes kBytes>
  using Dot = MultiplyAddDot<Avx512, kBytes>;
};

}  // namespace
}  // namespace switchyard::cpu
