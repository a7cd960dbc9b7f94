// The kernels compiled for avx512_vnni. Everything but the table has internal linkage.
#include "cpu/isa_avx512_vnni.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {
namespace {

/// Peak of VDPBF16PS. The kernels do not use it: it rounds to even and flushes subnormals between
/// its two products, so its bits would differ from those of the fused multiply-adds.
__attribute__((target("avx512bf16"))) float bf16_dot(int64_t iterations) {
  __m512 sums[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512i x = _mm512_set1_epi32(0x3f003f00);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakChains; ++i) {
      sums[i] =
          _mm512_dpbf16_ps(sums[i], reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x));
    }
    asm volatile("" : "+v"(x));
  }
  __m512 sum = sums[0];
  for (int i = 1; i < kPeakChains; ++i) sum = _mm512_add_ps(sum, sums[i]);
  float result[16];
  _mm512_storeu_ps(result, sum);
  return result[0];
}

constexpr Kernels with_bf16_dot() {
  Kernels kernels = kTable<Avx512Vnni>;
  kernels.bf16_dot = &bf16_dot;
  return kernels;
}
constexpr Kernels kKernels = with_bf16_dot();

}  // namespace

const Kernels& kernels_avx512_vnni() { return kKernels; }

}  // namespace switchyard::cpu
