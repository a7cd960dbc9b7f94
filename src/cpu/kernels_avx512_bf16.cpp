// The kernels compiled for avx512_bf16. Everything but the table has internal linkage.
#include "cpu/isa_avx512_bf16.h"
#include "cpu/kernel_table.h"

namespace switchyard::cpu {
namespace {

/// Peak of VDPBF16PS.
float bf16_dot(int64_t iterations) {
  using Isa = Avx512Bf16;
  __m512 sums[kPeakChains];
  for (int i = 0; i < kPeakChains; ++i) sums[i] = Isa::set(static_cast<float>(i));
  __m512i x = Isa::set_int(0x3f003f00);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakChains; ++i) sums[i] = Isa::fma_pairs(x, x, sums[i]);
    asm volatile("" : "+v"(x));
  }
  __m512 sum = sums[0];
  for (int i = 1; i < kPeakChains; ++i) sum = Isa::add(sum, sums[i]);
  float result[16];
  Isa::store(result, sum);
  return result[0];
}

/// 16 dwords of random bits.
__m512i random_bits(uint32_t& state) {
  alignas(64) uint32_t words[16];
  for (uint32_t& word : words) word = state = state * 1664525u + 1013904223u;
  return _mm512_load_si512(words);
}

}  // namespace

const Kernels& kernels_avx512_bf16() {
  static const Kernels kernels = [] {
    Kernels table = kTable<Avx512Bf16>;
    table.bf16_dot = &bf16_dot;
    table.bf16_rows = pairs_outrun_fmas();
    return table;
  }();
  return kernels;
}

bool bf16_dots_are_two_fmas() {
  using Isa = Avx512Bf16;
  constexpr unsigned kFlushSubnormals = 0x8040;
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | kFlushSubnormals);
  bool same = true;
  uint32_t state = 1;
  for (int i = 0; i < 4096 && same; ++i) {
    // Random bits have exponents far apart; here products and sums also meet in size, or vanish.
    const __m512i exponents = Isa::set_int(static_cast<int32_t>(0x9fff9fffu)),
                  middle = Isa::set_int(i % 2 == 0 ? 0x20002000 : 0x3f003f00);
    __m512i a = random_bits(state), b = random_bits(state), c = random_bits(state);
    if (i % 4 < 2) {
      a = _mm512_or_si512(_mm512_and_si512(a, exponents), middle);
      b = _mm512_or_si512(_mm512_and_si512(b, exponents), middle);
      c = _mm512_and_si512(
          c, Isa::set_int(static_cast<int32_t>(i % 2 == 0 ? 0x80ffffff : 0xbfffffff)));
    }
    const auto upper = [](__m512i x) {
      return Isa::as_float(Isa::bit_and(x, Isa::set_int(static_cast<int32_t>(0xffff0000u))));
    };
    const auto lower = [](__m512i x) { return Isa::as_float(Isa::shift_left<16>(x)); };
    const __m512 two = Isa::fma(lower(a), lower(b), Isa::fma(upper(a), upper(b), Isa::as_float(c)));
    const __m512 one = Isa::fma_pairs(a, b, Isa::as_float(c));
    const __mmask16 equal = _mm512_cmpeq_epi32_mask(Isa::as_int(one), Isa::as_int(two));
    const __mmask16 both_nan =
        _mm512_cmp_ps_mask(one, one, _CMP_UNORD_Q) & _mm512_cmp_ps_mask(two, two, _CMP_UNORD_Q);
    same = (equal | both_nan) == 0xffff;
  }
  _mm_setcsr(saved);
  return same;
}

}  // namespace switchyard::cpu
