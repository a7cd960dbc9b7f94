#pragma once
// Words of fragment order to registers of the wgmma operand A. The same code on host and device, so
// that its exactness is tested on every code and scale without a GPU.

#include <array>
#include <cstdint>

#include "core/fragment_layout.h"
#include "core/host_device.h"
#include "core/number_formats.h"

namespace switchyard {

/// Bytes of {low, high} chosen by the nibbles of `selector` (0..7 each).
SWITCHYARD_HOST_DEVICE inline uint32_t choose_bytes(uint32_t low, uint32_t high,
                                                    uint32_t selector) {
#if defined(__CUDA_ARCH__)
  uint32_t out;  // __byte_perm would mask the selector
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
  return out;
#else
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t n = selector >> (4 * i) & 7u;
    out |= ((n < 4 ? low : high) >> (8 * (n % 4)) & 0xffu) << (8 * i);
  }
  return out;
#endif
}

/// The E4M3 codes of the eight E2M1 magnitudes times one power of two.
struct Fp8Table {
  uint32_t low, high;
};

/// Magnitudes times `scale`, rounded to nearest.
SWITCHYARD_HOST_DEVICE constexpr Fp8Table scaled_fp8_table(float scale) {
  Fp8Table table{0, 0};
  for (int code = 0; code < 8; ++code) {
    const float value = fp4_e2m1_to_f32(static_cast<uint8_t>(code)) * scale;
    uint32_t& half = code < 4 ? table.low : table.high;
    half |= uint32_t{f32_to_fp8_e4m3(value)} << (code % 4 * 8);
  }
  return table;
}
/// Table of scale byte 8 * index: magnitudes times 2^(index - 8), all exact.
SWITCHYARD_HOST_DEVICE constexpr Fp8Table make_fp8_table(int index) {
  return scaled_fp8_table(power_of_two(index - 8));
}
inline constexpr int kNumFp8Tables = 15;
inline constexpr auto kFp8Tables = [] {
  std::array<Fp8Table, kNumFp8Tables> tables{};
  for (int i = 0; i < kNumFp8Tables; ++i) tables[static_cast<size_t>(i)] = make_fp8_table(i);
  return tables;
}();

/// The same without memory, for blocks at most kMaxAddedSteps down: from 2^-5 on no magnitude is a
/// subnormal E4M3, so that a power of two more adds 8 to every code but that of zero.
inline constexpr int kMaxAddedSteps = 11;
SWITCHYARD_HOST_DEVICE constexpr Fp8Table added_fp8_table(uint32_t byte) {
  constexpr uint32_t kFirst = 24;  // byte of 2^-5
  return {byte * 0x01010100u + (0x14100800u - kFirst * 0x01010100u),
          byte * 0x01010101u + (0x24201c18u - kFirst * 0x01010101u)};
}

/// Of every scale byte of NVFP4 in kFp8 order. A product has up to six significant bits, E4M3 four:
/// this is where that pair of formats rounds.
struct Nvfp4Tables {
  static constexpr int kCount = kNvfp4Exponents * 8;
  Fp8Table of[kCount];
};
constexpr Nvfp4Tables make_nvfp4_tables() {
  Nvfp4Tables tables{};
  for (int byte = 0; byte < Nvfp4Tables::kCount; ++byte) {
    tables.of[byte] = scaled_fp8_table(nvfp4_scale(static_cast<uint8_t>(byte)) * kNvfp4Fp8Shrink);
  }
  return tables;
}

/// Eight E2M1 codes of one row: four E4M3 each for the lower and the upper half of a k-step, which
/// have scales of their own.
SWITCHYARD_HOST_DEVICE inline void convert_fp8(uint32_t word, const Fp8Table& low_columns,
                                               const Fp8Table& high_columns, uint32_t& lower,
                                               uint32_t& upper) {
#if defined(__CUDA_ARCH__)
  uint32_t selector;  // opaque, or the compiler masks either half by itself
  asm("and.b32 %0, %1, 0x77777777;" : "=r"(selector) : "r"(word));
#else
  const uint32_t selector = word & 0x77777777u;
#endif
  lower = (word & 0x80808080u) | choose_bytes(low_columns.low, low_columns.high, selector);
  upper =
      (word << 4 & 0x80808080u) | choose_bytes(high_columns.low, high_columns.high, selector >> 16);
}
SWITCHYARD_HOST_DEVICE inline void convert_fp8(uint32_t word, const Fp8Table& table,
                                               uint32_t& lower, uint32_t& upper) {
  convert_fp8(word, table, table, lower, upper);
}

/// Both halves of a register times both halves of another, bf16, rounded to nearest.
SWITCHYARD_HOST_DEVICE inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
#else
  uint32_t product = 0;
  for (int half = 0; half < 32; half += 16) {
    const float x = bf16_to_f32(static_cast<uint16_t>(a >> half));
    const float y = bf16_to_f32(static_cast<uint16_t>(b >> half));
    product |= uint32_t{f32_to_bf16(x * y)} << half;
  }
  return product;
#endif
}

/// Eight E2M1 codes of two rows to {first, second} x {lower, upper} columns. A bf16 whose bits 15
/// and 8..6 are a code is its value times 2^-126, subnormal or not; a multiplier (one per row, in
/// both halves) takes that back together with the scale.
SWITCHYARD_HOST_DEVICE inline void convert_bf16(uint32_t word, uint32_t first, uint32_t second,
                                                uint32_t (&a)[4]) {
  a[0] = multiply_bf16(word & 0x81c081c0u, first);
  a[1] = multiply_bf16(word << 3 & 0x81c081c0u, second);
  a[2] = multiply_bf16((word << 2 & 0x80008000u) | (word << 6 & 0x01c001c0u), first);
  a[3] = multiply_bf16((word << 1 & 0x80008000u) | (word >> 3 & 0x01c001c0u), second);
}

/// Four E4M3 codes of one row to {lower, upper} columns: a bf16 whose bits 15 and 10..4 are a code
/// is its value times 2^-120, subnormal or not.
SWITCHYARD_HOST_DEVICE inline void convert_e4m3_bf16(uint32_t word, uint32_t multiplier,
                                                     uint32_t& lower, uint32_t& upper) {
  lower = multiply_bf16(word & 0x87f087f0u, multiplier);
  upper = multiply_bf16((word << 4 & 0x80f080f0u) | (word >> 4 & 0x07000700u), multiplier);
}

/// Byte `index` of `scales` as a multiplier of these two. MX: it is the exponent field.
SWITCHYARD_HOST_DEVICE inline uint32_t mx_multiplier(uint32_t scales, int index) {
  return choose_bytes(scales, 0, 0x4040u + static_cast<uint32_t>(index) * 0x0101u) << 7;
}

/// kNvfp4: 2^118 times the scale; kNvfp4RowScale takes the missing 2^8 back.
SWITCHYARD_HOST_DEVICE inline uint32_t nvfp4_multiplier(uint32_t scales, int index) {
  const uint32_t both = choose_bytes(scales, 0, 0x4040u + static_cast<uint32_t>(index) * 0x0101u);
  return both * 16u + ((127u + 118u - 9u) << 7) * 0x00010001u;
}

/// 128 + a zero point in both halves, bf16.
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_bias(uint32_t zero_point) {
  return 0x43004300u + zero_point * 0x00010001u;
}
/// Eight INT4 codes of two rows, the zero points of their int4_bias() taken off, exactly.
SWITCHYARD_HOST_DEVICE inline void convert_int4(uint32_t word, uint32_t first, uint32_t second,
                                                uint32_t (&a)[4]) {
  for (int reg = 0; reg < 4; ++reg) {
    const uint32_t bias = reg % 2 == 0 ? first : second;
    // 128 + code
#if defined(__CUDA_ARCH__)
    uint32_t biased;  // (shifted & mask) | bias: one instruction, if no constant is folded into it
    asm("lop3.b32 %0, %1, %2, %3, 0xea;"
        : "=r"(biased)
        : "r"(word >> (4 * reg)), "r"(0x000f000fu), "r"(0x43004300u));
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(a[reg]) : "r"(biased), "r"(bias));
#else
    const uint32_t biased = (word >> (4 * reg) & 0x000f000fu) | 0x43004300u;
    a[reg] = 0;
    for (int half = 0; half < 32; half += 16) {
      const float code = bf16_to_f32(static_cast<uint16_t>(biased >> half)) -
                         bf16_to_f32(static_cast<uint16_t>(bias >> half));
      a[reg] |= uint32_t{f32_to_bf16(code)} << half;
    }
#endif
  }
}
/// The same without zero points: 8.
SWITCHYARD_HOST_DEVICE inline void convert_int4(uint32_t word, uint32_t (&a)[4]) {
  convert_int4(word, int4_bias(kInt4ZeroPoint), int4_bias(kInt4ZeroPoint), a);
}

/// Four INT4 stored as sign and magnitude (signed_magnitude_int4), in the low nibbles of bytes: the
/// E4M3 numbers of 2^-8 v. A byte up to 0x10 is an integer times E4M3's least number.
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_to_fp8(uint32_t word) {
  return (word & 0x0f0f0f0fu) + (word & 0x01010101u) * 129u;
}
/// A zero point in all bytes.
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_zeros(uint32_t zero_point) {
  return zero_point * 0x01010101u;
}
/// 128 + code - zero point.
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_less_zeros(uint32_t word, uint32_t zeros) {
  return ((word & 0x0f0f0f0fu) | 0x80808080u) - zeros;
}
/// Four INT4 codes in the low nibbles of bytes, their zero point taken off, as E4M3 numbers of
/// 2^-9 v. Zero points up to kMostInt4Fp8Zero.
SWITCHYARD_HOST_DEVICE inline uint32_t int4_to_fp8(uint32_t word, uint32_t zeros) {
  const uint32_t biased = int4_less_zeros(word, zeros);
#if defined(__CUDA_ARCH__)
  uint32_t positive;  // all bits of the byte
  asm("prmt.b32 %0, %1, %1, 0xba98;" : "=r"(positive) : "r"(biased));
#else
  const uint32_t positive = (biased >> 7 & 0x01010101u) * 0xffu;
#endif
  return (biased ^ ~(positive & 0x7f7f7f7fu)) + (~positive & 0x01010101u);
}
/// The same as INT8 numbers v; any zero point.
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_to_int8(uint32_t word, uint32_t zeros) {
  return int4_less_zeros(word, zeros) ^ 0x80808080u;
}

}  // namespace switchyard
