#pragma once
// Packed order of 4-bit and MXFP8 weights for Hopper's tensor cores: each thread of a warpgroup
// loads its own registers of the wgmma operand A, converted on the way, and a stage of the pipeline
// is one contiguous piece of memory.
//
//   expert | row block 0 (64 rows): block k 0..63, block k 64..127, ... | row block 1 | ...
//   block  | 128 threads x 16 bytes of codes | 32 row pairs x scales |       64 rows x 64 columns
//          (kMxfp8: the codes of k-steps 0, 1, then those of 2, 3)
//
//   thread 32 w + 4 g + q holds of rows 16 w + 2 g ("first") and 16 w + 2 g + 1 ("second"):
//     kFp8   word 2 j + h  k-step j of 32 columns, row h of the pair; columns 4 q.. 4 q + 3 and
//                          16 + 4 q .. of the step
//     kInt8  as kFp8
//     kBf16  word j        k-step j of 16 columns, both rows; columns 2 q, 2 q + 1 and
//                          8 + 2 q, 8 + 2 q + 1 of the step; kMxfp8: word 2 j + h, row h
//   pair 8 w + g          [row of the pair][scales of the block's columns]: one 4- or 8-byte load
//
// wgmma wants rows g and g + 8 of 16 in one thread. They are neighbours here (fragment_row), so
// that gate and up, whose rows alternate, meet in one thread, and so do two output columns.
//
// MX scales count from the largest of their row, whose power of two is left to the epilogue
// (row_scale): the steps "down" of a block become what its converter takes (fragment_convert.h).
// A row with more steps than its order's converter is exact for is "wide": it keeps plain E8M0
// bytes, its row_scale is negative, and only kernels that compute in f32 may use it.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"
#include "core/number_formats.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

inline constexpr int kFragmentRows = 64;
inline constexpr int kFragmentCols = 64;
inline constexpr int kFragmentThreads = 128;
/// Codes of a block.
SWITCHYARD_HOST_DEVICE constexpr int fragment_code_bytes(Format format) {
  return kFragmentRows * kFragmentCols * element_bits(format) / 8;
}
inline constexpr int kFragmentCodeBytes = fragment_code_bytes(Format::kMxfp4);  ///< of four bits

/// The tensor-core loop that the words are ordered for.
enum class FragmentOrder : int32_t { kRowMajor, kFp8, kBf16, kInt8 };
SWITCHYARD_HOST_DEVICE constexpr bool multiplies_bytes(FragmentOrder order) {
  return order == FragmentOrder::kFp8 || order == FragmentOrder::kInt8;
}

/// Where everything of one matrix is. Rows and columns are padded with zero codes to whole blocks.
struct FragmentLayout {
  FragmentOrder order = FragmentOrder::kRowMajor;
  Format format = Format::kMxfp4;
  int32_t scale_cols = 32;  ///< columns of a block that share a scale: 16, 32 or 64
  int32_t scale_bytes = 1;  ///< kInt4: 2 are a bf16, 4 an int4_factor()
  int32_t block_bytes = 0;
  int32_t row_blocks = 0;
  int32_t col_blocks = 0;

  SWITCHYARD_HOST_DEVICE constexpr int32_t scales_per_row() const {
    return kFragmentCols / scale_cols;
  }
  SWITCHYARD_HOST_DEVICE constexpr int64_t padded_rows() const {
    return int64_t{row_blocks} * kFragmentRows;
  }
  SWITCHYARD_HOST_DEVICE constexpr int64_t padded_cols() const {
    return int64_t{col_blocks} * kFragmentCols;
  }
  SWITCHYARD_HOST_DEVICE constexpr int64_t row_block_bytes() const {
    return int64_t{col_blocks} * block_bytes;
  }
  SWITCHYARD_HOST_DEVICE constexpr int64_t bytes() const { return row_blocks * row_block_bytes(); }
  bool operator==(const FragmentLayout&) const = default;
};

/// group: columns per scale as stored. A group of more than 64 columns is repeated in each block.
/// factors: kInt4 scales are f16, or have zero points.
SWITCHYARD_HOST_DEVICE constexpr FragmentLayout fragment_layout(FragmentOrder order, Format format,
                                                                int64_t group, int64_t rows,
                                                                int64_t cols,
                                                                bool factors = false) {
  FragmentLayout layout{.order = order, .format = format};
  layout.scale_cols = static_cast<int32_t>(group < kFragmentCols ? group : kFragmentCols);
  layout.scale_bytes = factors ? 4 : format == Format::kInt4 ? 2 : 1;
  layout.block_bytes =
      fragment_code_bytes(format) + kFragmentRows * layout.scales_per_row() * layout.scale_bytes;
  layout.row_blocks = static_cast<int32_t>(ceil_div<int64_t>(rows, kFragmentRows));
  layout.col_blocks = static_cast<int32_t>(ceil_div<int64_t>(cols, kFragmentCols));
  return layout;
}

/// Row of the wgmma tile that row `row` of 64 becomes: 16 w + 2 g + h -> 16 w + g + 8 h.
SWITCHYARD_HOST_DEVICE constexpr int fragment_row(int row) {
  return row / 16 * 16 + row % 16 / 2 + row % 2 * 8;
}

/// Byte at which the block of (row, col) begins.
SWITCHYARD_HOST_DEVICE constexpr int64_t fragment_block(const FragmentLayout& layout, int64_t row,
                                                        int64_t col) {
  return row / kFragmentRows * layout.row_block_bytes() + col / kFragmentCols * layout.block_bytes;
}

/// A code in its block: a 32-bit word, the bit its low three bits begin at, the bit of its top one.
/// Eight bits: of the low four, the top one, the three in the middle.
struct CodePlace {
  int word;
  int low;
  int top;
  int middle = 0;  ///< 0: four bits
  /// INT4 is stored as its sign (the top bit) and v or, below zero, -v - 1.
  bool signed_magnitude = false;
};
/// Either way.
SWITCHYARD_HOST_DEVICE constexpr uint32_t signed_magnitude_int4(uint32_t code) {
  return code ^ ((code & 8u) != 0 ? 8u : 15u);
}
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_of_signed_magnitude(uint32_t stored) {
  return stored ^ ((stored & 8u) != 0 ? 15u : 8u);
}

/// code_place() of kMxfp8.
SWITCHYARD_HOST_DEVICE constexpr CodePlace byte_place(int row, int col) {
  const int step = col / 16, k = col % 16, i = k % 2;
  const int thread = row / 2 * 4 + k % 8 / 2;
  const int word = step / 2 * kFragmentThreads * 4 + thread * 4 + step % 2 * 2 + row % 2;
  // Columns of the lower half are where a bf16 has sign, exponent and fraction; those of the upper
  // half fill the gaps so that two shifts bring them there.
  if (k < 8) return {word, 16 * i + 4, 16 * i + 15, 16 * i + 8};
  return {word, 16 * i, 16 * i + 11, 16 * i + 12};
}

/// row and col within the block. Columns 4 n .. 4 n + 3 (bytes) or 2 n, 2 n + 1 share a word.
/// factors: as of fragment_layout().
SWITCHYARD_HOST_DEVICE constexpr CodePlace code_place(FragmentOrder order, Format format, int row,
                                                      int col, bool factors = false) {
  if (format == Format::kMxfp8) return byte_place(row, col);
  const int pair = row / 2;  // 8 w + g
  const int second = row % 2;
  if (multiplies_bytes(order)) {
    const int k = col % 32, i = k % 4, upper = k / 16;
    const int word = (pair * 4 + k % 16 / 4) * 4 + col / 32 * 2 + second;
    if (format != Format::kInt4) {
      return {word, 16 * upper + 4 * i, 8 * i + (upper != 0 ? 3 : 7)};
    }
    const int low = 8 * i + 4 * upper;
    if (order == FragmentOrder::kInt8 || factors) return {word, low, low + 3};
    return {word, low + 1, low, 0, true};
  }
  const int k = col % 16, i = k % 2, reg = k / 8 * 2 + second;
  const int word = (pair * 4 + k % 8 / 2) * 4 + col / 16;
  if (format == Format::kInt4) return {word, 16 * i + 4 * reg, 16 * i + 4 * reg + 3};
  // Four fields {top, low} whose shifts onto a bf16's {15, 8..6} need no more than a mask.
  const int low = reg == 0 ? 6 : reg == 1 ? 3 : reg == 2 ? 0 : 9;
  const int top = reg == 0 ? 15 : 11 + reg;
  return {word, 16 * i + low, 16 * i + top};
}
/// Neighbouring columns that share a word.
SWITCHYARD_HOST_DEVICE constexpr int code_run(FragmentOrder order) {
  return multiplies_bytes(order) ? 4 : 2;
}
/// Of the layout's blocks.
SWITCHYARD_HOST_DEVICE constexpr CodePlace code_place(const FragmentLayout& layout, int row,
                                                      int col) {
  return code_place(layout.order, layout.format, row, col, layout.scale_bytes == 4);
}

SWITCHYARD_HOST_DEVICE constexpr uint32_t code_of(uint32_t word, const CodePlace& place) {
  if (place.middle != 0) {
    return (word >> place.low & 15u) | (word >> place.middle & 7u) << 4 |
           (word >> place.top & 1u) << 7;
  }
  const uint32_t code = (word >> place.low & 7u) | (word >> place.top & 1u) << 3;
  return place.signed_magnitude ? int4_of_signed_magnitude(code) : code;
}
SWITCHYARD_HOST_DEVICE constexpr uint32_t placed_code(uint32_t code, const CodePlace& place) {
  if (place.middle != 0) {
    return (code & 15u) << place.low | (code >> 4 & 7u) << place.middle |
           (code >> 7 & 1u) << place.top;
  }
  if (place.signed_magnitude) code = signed_magnitude_int4(code);
  return (code & 7u) << place.low | (code >> 3 & 1u) << place.top;
}

/// Byte of the block that holds the scale of (row, col).
SWITCHYARD_HOST_DEVICE constexpr int scale_place(const FragmentLayout& layout, int row, int col) {
  return fragment_code_bytes(layout.format) +
         (row * layout.scales_per_row() + col / layout.scale_cols) * layout.scale_bytes;
}

// ---- scale bytes

/// Largest number of steps down for which every product's operand is exact: E2M1 times 2^-8 .. 2^6
/// is exactly an E4M3 number; a bf16 stays normal (E4M3's least is 2^-9: 2^-122).
SWITCHYARD_HOST_DEVICE constexpr int max_steps_down(FragmentOrder order) {
  return order == FragmentOrder::kFp8 ? 14 : 120;
}

/// MX: byte of a block that is `down` powers of two below the largest of its row. kFp8: eight
/// times an index into the conversion table; kBf16: exponent field of a bf16 multiplier.
SWITCHYARD_HOST_DEVICE constexpr uint8_t mx_scale_byte(FragmentOrder order, int down) {
  return static_cast<uint8_t>(order == FragmentOrder::kFp8 ? 8 * (14 - down) : 254 - down);
}
/// The power of two that the converters multiply codes with. A bf16 with an E2M1 or E4M3 code in
/// its fields is 2^-126 or 2^-120 times the number.
SWITCHYARD_HOST_DEVICE constexpr int mx_scale_exponent(FragmentOrder order, Format format,
                                                       uint8_t byte) {
  if (order == FragmentOrder::kFp8) return byte / 8 - 8;
  return byte - (format == Format::kMxfp8 ? 247 : 253);
}
/// Power of two of a row whose largest E8M0 byte is `largest`: value = code * 2^block * 2^row.
SWITCHYARD_HOST_DEVICE constexpr int mx_row_exponent(FragmentOrder order, Format format,
                                                     uint8_t largest) {
  return largest - 127 - mx_scale_exponent(order, format, mx_scale_byte(order, 0));
}

/// kNvfp4: the magnitude of an E4M3 scale as [5 bits exponent + 9][3 bits mantissa], subnormals
/// normalised: shifted left by 4 and moved by a constant it is a bf16. A sign goes to the codes,
/// and so does a zero, which gives the byte of 2^-9.
SWITCHYARD_HOST_DEVICE constexpr uint8_t nvfp4_scale_byte(uint8_t e4m3) {
  const int exponent = e4m3 >> 3 & 15, mantissa = e4m3 & 7;
  if (exponent != 0) return static_cast<uint8_t>((exponent + 2) << 3 | mantissa);
  const int shift = mantissa >= 4 ? 1 : mantissa >= 2 ? 2 : 3;
  return static_cast<uint8_t>((3 - shift) << 3 | (mantissa << shift & 7));
}
SWITCHYARD_HOST_DEVICE constexpr float nvfp4_scale(uint8_t byte) {
  return f32_from_bits((static_cast<uint32_t>(byte) << 20) + (uint32_t{127 - 9} << 23));
}
/// kBf16: the tensor core's products are this much too small, which row_scale takes back: a bf16
/// multiplier of 2^126 times a scale of 2 or more would be infinite.
inline constexpr float kNvfp4RowScale = 256.0f;
/// kFp8: the byte is relative to the largest exponent of its row, for which it has kNvfp4Exponents
/// - 1; the products' operands are 2^-3 of what nvfp4_scale() says: 6 * 480 becomes 360.
inline constexpr int kNvfp4Exponents = 18;
SWITCHYARD_HOST_DEVICE constexpr int nvfp4_exponent(uint8_t byte) { return byte >> 3; }
SWITCHYARD_HOST_DEVICE constexpr uint8_t nvfp4_relative_byte(uint8_t byte, int largest) {
  return static_cast<uint8_t>(byte + (kNvfp4Exponents - 1 - largest) * 8);
}
inline constexpr float kNvfp4Fp8Shrink = 0x1p-3f;

/// kInt4: a scale that was bf16 or f16, whose f32 has 13 zeros at its end, and a zero point there.
inline constexpr uint32_t kInt4ZeroBits = 0x7f;
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_factor(float scale, uint32_t zero_point) {
  return f32_bits(scale) | zero_point;
}
SWITCHYARD_HOST_DEVICE constexpr float int4_scale(uint32_t factor) {
  return f32_from_bits(factor & ~kInt4ZeroBits);
}
SWITCHYARD_HOST_DEVICE constexpr uint32_t int4_zero_point(uint32_t factor) {
  return factor & kInt4ZeroBits;
}
/// kFp8: largest zero point that leaves E4M3 numbers (-16 .. 15) of all codes.
inline constexpr uint32_t kMostInt4Fp8Zero = 16;
/// kInt4: an integer is stored as a subnormal E4M3, or the next ones up, so much too small; twice
/// that where the sign takes the lowest bit.
SWITCHYARD_HOST_DEVICE constexpr float int4_row_scale(const FragmentLayout& layout) {
  if (layout.order != FragmentOrder::kFp8) return 1.0f;
  return layout.scale_bytes == 4 ? 512.0f : 256.0f;
}

/// 2^exponent, subnormal results included.
SWITCHYARD_HOST_DEVICE constexpr float power_of_two(int exponent) {
  return exponent >= -126 ? f32_from_bits(static_cast<uint32_t>(exponent + 127) << 23)
                          : f32_from_bits(uint32_t{1} << (exponent + 149));
}

/// kNvfp4: of a row whose largest exponent is `largest`, less the global scale.
SWITCHYARD_HOST_DEVICE constexpr float nvfp4_row_scale(FragmentOrder order, int largest) {
  if (order != FragmentOrder::kFp8) return kNvfp4RowScale;
  return power_of_two(largest - (kNvfp4Exponents - 1)) / kNvfp4Fp8Shrink;
}

/// What a kernel that computes in f32 multiplies the codes of (row, scale byte) with. `scale` holds
/// one stored scale in its lowest bytes.
SWITCHYARD_HOST_DEVICE constexpr float fragment_scale(const FragmentLayout& layout, uint32_t scale,
                                                      float row_scale) {
  const auto byte = static_cast<uint8_t>(scale);
  if (layout.format == Format::kInt4) {
    return (layout.scale_bytes == 4 ? int4_scale(scale)
                                    : bf16_to_f32(static_cast<uint16_t>(scale))) *
           (row_scale / int4_row_scale(layout));
  }
  if (layout.format == Format::kNvfp4) {
    const bool fp8 = layout.order == FragmentOrder::kFp8;
    return nvfp4_scale(byte) * (fp8 ? row_scale * kNvfp4Fp8Shrink : row_scale / kNvfp4RowScale);
  }
  if (row_scale < 0.0f) return e8m0_to_f32(byte) * -row_scale;
  return power_of_two(mx_scale_exponent(layout.order, layout.format, byte)) * row_scale;
}

}  // namespace switchyard
