#pragma once
// AVX2 with the VEX form of VPDPBUSD (AVX-VNNI: Alder Lake and later, Zen 5).

#include "cpu/isa_avx2.h"

namespace switchyard::cpu {
namespace {

struct Avx2Vnni : Avx2 {
  static constexpr const char* kName = "avx2_vnni";
  static constexpr int kTileVectorsWide = kTileVectors;
  static constexpr int kTileRowsInt = 4;

  static constexpr bool kWordCorrections = false;
  SWITCHYARD_INLINE I times_zeros(I zeros, I correction) {
    return multiply_add_words(zeros, correction);
  }
  SWITCHYARD_INLINE I dot_bytes(I sum, I w, I a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
  template <IntBytes>
  using Dot = VnniDot<Avx2Vnni>;
};

}  // namespace
}  // namespace switchyard::cpu
