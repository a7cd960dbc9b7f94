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
    return _mm512_madd_epi16(zeros, correction);
  }
  template <IntBytes>
  struct Dot {
    using Acc = I;
    SWITCHYARD_INLINE I weight(I bytes) { return bytes; }
    SWITCHYARD_INLINE I activation(const int8_t* four) {
      int32_t dword;
      __builtin_memcpy(&dword, four, 4);
      return _mm512_set1_epi32(dword);
    }
    SWITCHYARD_INLINE Acc start(I correction) { return correction; }
    SWITCHYARD_INLINE void step(Acc& acc, I w, I a) { acc = _mm512_dpbusd_epi32(acc, w, a); }
    SWITCHYARD_INLINE I result(Acc acc) { return acc; }
  };
};

}  // namespace
}  // namespace switchyard::cpu
