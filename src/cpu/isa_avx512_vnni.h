#pragma once
// AVX-512 with VPDPBUSD: four u8 x s8 products per dword into int32, never saturating.

#include "cpu/isa_avx512.h"

namespace switchyard::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr const char* kName = "avx512_vnni";
  static constexpr int kTileVectorsWide = kTileVectors;
  static constexpr int kTileRowsInt = 6;  // 12 integer and 12 float accumulators of 32 registers

  static constexpr bool kWordCorrections = false;
  SWITCHYARD_INLINE I times_zeros(I zeros, I correction) {
    return multiply_add_words(zeros, correction);
  }
  SWITCHYARD_INLINE I dot_bytes(I sum, I w, I a) { return _mm512_dpbusd_epi32(sum, w, a); }
  template <IntBytes>
  using Dot = VnniDot<Avx512Vnni>;
};

}  // namespace
}  // namespace switchyard::cpu
