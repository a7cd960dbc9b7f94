#pragma once
// AVX-512 VNNI with VDPBF16PS: two bf16 products per dword into f32.

#include "cpu/isa_avx512_vnni.h"

namespace switchyard::cpu {
namespace {

struct Avx512Bf16 : Avx512Vnni {
  static constexpr const char* kName = "avx512_bf16";
  static constexpr bool kPairProducts = true;

  /// fma of the upper halves, then of the lower ones (bf16_dots_are_two_fmas).
  SWITCHYARD_INLINE F fma_pairs(I a, I b, F c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  /// The same with the pair at p (see fma_at).
  SWITCHYARD_INLINE F fma_pairs_at(I a, const int32_t* p, F c) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(a), "m"(*p));
    return c;
  }
};

}  // namespace
}  // namespace switchyard::cpu
