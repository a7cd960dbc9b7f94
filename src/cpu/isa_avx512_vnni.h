#pragma once
// AVX-512 with VPDPBUSD: four u8 x s8 products per dword into int32, never saturating.

#include "cpu/isa_avx512.h"

namespace switchyard::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr const char* kName = "avx512_vnni";
  static constexpr int kTileRowsInt = 6;  // 12 integer and 12 float accumulators of 32 registers

  template <bool /*kWide*/>
  struct Dot {
    using Acc = I;
    using Operand = I;
    SWITCHYARD_INLINE Operand weight(I bytes) { return bytes; }
    SWITCHYARD_INLINE Operand activation(const int8_t* four) {
      int32_t dword;
      __builtin_memcpy(&dword, four, 4);
      return _mm512_set1_epi32(dword);
    }
    SWITCHYARD_INLINE Acc start(I init) { return init; }
    SWITCHYARD_INLINE void step(Acc& acc, Operand w, Operand a) {
      acc = _mm512_dpbusd_epi32(acc, w, a);
    }
    SWITCHYARD_INLINE void fold(Acc&) {}
    SWITCHYARD_INLINE I result(Acc acc) { return acc; }
    SWITCHYARD_INLINE void keep_in_register(Operand& x) { asm volatile("" : "+v"(x)); }
  };
};

}  // namespace
}  // namespace switchyard::cpu
