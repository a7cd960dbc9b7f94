#pragma once
// AVX-512 F/BW/VL/DQ as the operations the kernel templates use (see isa_avx2.h for their meaning).

// g++ 12's own _mm512_undefined_* and its users trip these when inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define SWITCHYARD_INLINE static inline __attribute__((always_inline))

namespace switchyard::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr const char* kName = "avx512";
  static constexpr int kLanes = 16;
  static constexpr int kTileVectors = 2;
  static constexpr int kTileRowsInt = 4;
  static constexpr int kTileRowsFloat = 12;
  static constexpr int kTileRowsScaled = 6;

  SWITCHYARD_INLINE F zero() { return _mm512_setzero_ps(); }
  SWITCHYARD_INLINE F set(float x) { return _mm512_set1_ps(x); }
  SWITCHYARD_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  SWITCHYARD_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  SWITCHYARD_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  SWITCHYARD_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  SWITCHYARD_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  SWITCHYARD_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  SWITCHYARD_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
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
  SWITCHYARD_INLINE I multiply_words(I a, I b) { return _mm512_madd_epi16(a, b); }
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
  SWITCHYARD_INLINE I look_up_bytes(I table, I index) { return _mm512_shuffle_epi8(table, index); }
  template <int kShift>
  SWITCHYARD_INLINE F fp4_value(I codes) {
    const I nibble = kShift == 0 ? codes : _mm512_srli_epi32(codes, kShift);
    // VPERMPS looks at the low four bits of an index only.
    return _mm512_permutexvar_ps(
        nibble, _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f,
                               -1.5f, -2.0f, -3.0f, -4.0f, -6.0f));
  }

  template <bool kWide>
  struct Dot {
    struct Acc {
      I sum, words;
    };
    struct Operand {
      I even, odd;
    };
    SWITCHYARD_INLINE Operand weight(I bytes) {
      if (!kWide) return {bytes, bytes};
      return {_mm512_and_si512(bytes, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(bytes, 8)};
    }
    SWITCHYARD_INLINE Operand activation(const int8_t* four) {
      int32_t dword;
      __builtin_memcpy(&dword, four, 4);
      const I bytes = _mm512_set1_epi32(dword);
      if (!kWide) return {bytes, bytes};
      return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
    }
    SWITCHYARD_INLINE Acc start(I init) { return {init, _mm512_setzero_si512()}; }
    SWITCHYARD_INLINE void step(Acc& acc, const Operand& w, const Operand& a) {
      if (kWide) {
        acc.sum = _mm512_add_epi32(acc.sum, _mm512_madd_epi16(w.even, a.even));
        acc.sum = _mm512_add_epi32(acc.sum, _mm512_madd_epi16(w.odd, a.odd));
      } else {
        acc.words = _mm512_add_epi16(acc.words, _mm512_maddubs_epi16(w.even, a.even));
      }
    }
    SWITCHYARD_INLINE void fold(Acc& acc) {
      if (kWide) return;
      acc.sum = _mm512_add_epi32(acc.sum, _mm512_madd_epi16(acc.words, _mm512_set1_epi16(1)));
      acc.words = _mm512_setzero_si512();
    }
    SWITCHYARD_INLINE I result(const Acc& acc) { return acc.sum; }
    /// The compiler forgets what it knows of x.
    SWITCHYARD_INLINE void keep_in_register(Operand& x) {
      asm volatile("" : "+v"(x.even), "+v"(x.odd));
    }
  };
};

}  // namespace
}  // namespace switchyard::cpu
