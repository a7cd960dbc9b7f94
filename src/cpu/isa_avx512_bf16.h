#pragma once
// AVX-512 VNNI with VDPBF16PS, two bf16 products per dword into f32, and VBMI's VPERMB. One level,
// because of all CPUs with the first only Cooper Lake lacks the second.

#include "cpu/isa_avx512_vnni.h"

namespace switchyard::cpu {
namespace {

struct Avx512Bf16 : Avx512Vnni {
  static constexpr const char* kName = "avx512_bf16";
  static constexpr bool kPairProducts = true;

  /// VPERMB looks at six bits; the table is there four times, so the upper two do not matter.
  SWITCHYARD_INLINE I look_up_nibbles(I table, I codes) {
    return _mm512_permutexvar_epi8(codes, table);
  }
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
