#pragma once
// Exact integer dot products over a block, on any width: what an ISA level calls Dot. Internal
// linkage, like all code compiled for one level.

#include "cpu/isa_common.h"

namespace switchyard::cpu {
namespace {

template <class Isa>
SWITCHYARD_INLINE typename Isa::I broadcast_four(const int8_t* four) {
  int32_t dword;
  __builtin_memcpy(&dword, four, 4);
  return Isa::set_int(dword);
}

/// Sums of products per dword, without VPDPBUSD.
/// Narrow: the sums with their correction fit 16 bits, so VPMADDUBSW and wrapping adds are exact:
/// 379 Gop/s on one Zen 4 core with AVX2, without loads. Wide: 16 * high nibble + low nibble, 189.
/// Words: VPMADDWD, 189 too, but with fewer loads and instructions around it.
template <class Isa, IntBytes kBytes>
struct MultiplyAddDot {
  using I = typename Isa::I;
  static constexpr bool kWide = kBytes == IntBytes::kWide;
  static constexpr bool kWords = kBytes == IntBytes::kWords;
  struct Acc {
    I low, high;
  };
  struct Weight {
    I low, high;
  };
  SWITCHYARD_INLINE Weight weight(I bytes) {
    if (!kWide) return {bytes, bytes};
    const I nibble = Isa::set_int(0x0f0f0f0f);
    return {Isa::bit_and(bytes, nibble), Isa::bit_and(Isa::template shift_right<4>(bytes), nibble)};
  }
  SWITCHYARD_INLINE I activation(const int8_t* four) { return broadcast_four<Isa>(four); }
  SWITCHYARD_INLINE Acc start(I correction) {
    const I zero = Isa::set_int(0);
    return {kBytes == IntBytes::kNarrow ? correction : zero, kWide ? correction : zero};
  }
  SWITCHYARD_INLINE void step(Acc& acc, const Weight& w, I a) {
    if (kWords) {
      acc.low = keep(Isa::add_int(acc.low, Isa::multiply_add_words(w.low, a)));
      return;
    }
    acc.low = keep(Isa::add_words(acc.low, Isa::multiply_add_bytes(w.low, a)));
    if (kWide) acc.high = keep(Isa::add_words(acc.high, Isa::multiply_add_bytes(w.high, a)));
  }
  /// g++ would gather the sums of a block at its end and spill the products meanwhile.
  SWITCHYARD_INLINE I keep(I sum) {
    asm("" : "+v"(sum));
    return sum;
  }
  SWITCHYARD_INLINE I result(const Acc& acc) {
    if (kWords) return acc.low;
    const I low = Isa::multiply_add_words(acc.low, Isa::set_int(0x00010001));
    if (!kWide) return low;
    return Isa::add_int(low, Isa::multiply_add_words(acc.high, Isa::set_int(0x00100010)));
  }
};

/// The same with VPDPBUSD: any unsigned byte, never saturating. (Its activation broadcast inside
/// the instruction, as fma_at does it: 359 instead of 366 Gop/s.)
template <class Isa>
struct VnniDot {
  using I = typename Isa::I;
  using Acc = I;
  SWITCHYARD_INLINE I weight(I bytes) { return bytes; }
  SWITCHYARD_INLINE I activation(const int8_t* four) { return broadcast_four<Isa>(four); }
  SWITCHYARD_INLINE Acc start(I correction) { return correction; }
  SWITCHYARD_INLINE void step(Acc& acc, I w, I a) { acc = Isa::dot_bytes(acc, w, a); }
  SWITCHYARD_INLINE I result(Acc acc) { return acc; }
};

}  // namespace
}  // namespace switchyard::cpu
