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
    return _mm256_madd_epi16(zeros, correction);
  }
  template <IntBytes>
  struct Dot {
    using Acc = I;
    SWITCHYARD_INLINE I weight(I bytes) { return bytes; }
    SWITCHYARD_INLINE I activation(const int8_t* four) {
      int32_t dword;
      __builtin_memcpy(&dword, four, 4);
      return _mm256_set1_epi32(dword);
    }
    SWITCHYARD_INLINE Acc start(I correction) { return correction; }
    SWITCHYARD_INLINE void step(Acc& acc, I w, I a) { acc = _mm256_dpbusd_avx_epi32(acc, w, a); }
    SWITCHYARD_INLINE I result(Acc acc) { return acc; }
  };
};

}  // namespace
}  // namespace switchyard::cpu
