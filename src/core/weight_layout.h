#pragma once
// Packed order of expert weights on the CPU. A matrix is cut into panels of 32 output rows; a panel
// holds its scales first, then its values in blocks of 32 columns, so that one pass reads one
// contiguous stream.
//
//   panel  | scales [num_scales][32 rows] | zero points, the same | values [num_blocks][block] |
//   block  | unit 0 of rows 0..31 | unit 1 of rows 0..31 | ...
//   unit   | a dword (fp4, int4, int8, bf16, f32) or a word (fp8, f16): consecutive columns of one
//   row. 4-bit dwords hold columns c..c+3 in the low nibbles and c+16..c+19 in the high ones; bf16
//   dwords hold column c in the upper half and c+1 in the lower, the order in which VDPBF16PS adds.
//
// MXFP4's scales end their block instead, so that each load of a loop over blocks advances by the
// same distance, panel after panel: hardware reads ahead of that as fast as memory delivers (one
// core of Zen 4, one row: a plain read 31 GB/s, this 31; scales before the values 18 without
// software prefetches and 22 with them; scales apart from all values 29, and slower layers).
//
// A vector register therefore accumulates one output row per lane, no sum is ever horizontal, and a
// pass over a panel touches its cache lines in ascending order.

#include <cstdint>

#include "core/math.h"

namespace switchyard {

inline constexpr int kPanelRows = 32;
inline constexpr int kBlockCols = 32;
inline constexpr int kLineBytes = 64;

enum class PanelValues : int32_t { kFp4, kInt4, kInt8, kFp8E4m3, kFp8E5m2, kBf16, kF16, kF32 };
enum class PanelScales : int32_t { kNone, kE8m0, kE4m3, kF32, kBf16, kF16 };

constexpr int value_bits(PanelValues values) {
  switch (values) {
    case PanelValues::kFp4:
    case PanelValues::kInt4: return 4;
    case PanelValues::kBf16:
    case PanelValues::kF16: return 16;
    case PanelValues::kF32: return 32;
    default: return 8;
  }
}

constexpr int scale_bytes(PanelScales scales) {
  switch (scales) {
    case PanelScales::kNone: return 0;
    case PanelScales::kF32: return 4;
    case PanelScales::kBf16:
    case PanelScales::kF16: return 2;
    default: return 1;
  }
}

/// Whether the unit that rows are interleaved by is a word (2 bytes) rather than a dword.
constexpr bool interleaves_words(PanelValues values) {
  return values == PanelValues::kFp8E4m3 || values == PanelValues::kFp8E5m2 ||
         values == PanelValues::kF16;
}

/// What is stored for the value 0 in a byte or nibble of padding.
constexpr int zero_code(PanelValues values) {
  return values == PanelValues::kInt8 ? 128 : values == PanelValues::kInt4 ? 8 : 0;
}

/// Sizes and offsets of one panel; every panel of a matrix has the same.
struct PanelLayout {
  PanelValues values = PanelValues::kF32;
  PanelScales scales = PanelScales::kNone;
  bool zero_points = false;
  bool scales_in_blocks = false;
  int32_t scale_cols = 0;  ///< columns per scale: 16 or a multiple of 32
  int32_t num_blocks = 0;
  int32_t num_scales = 0;  ///< per row
  int32_t block_bytes = 0;
  int64_t zeros_offset = 0;
  int64_t values_offset = 0;
  int64_t panel_bytes = 0;

  bool operator==(const PanelLayout&) const = default;
};

/// scale_cols 0 = one scale for all columns.
constexpr PanelLayout panel_layout(PanelValues values, PanelScales scales, bool zero_points,
                                   int64_t scale_cols, int64_t cols) {
  PanelLayout layout{.values = values, .scales = scales, .zero_points = zero_points};
  const int64_t padded_cols = align_up<int64_t>(cols, kBlockCols);
  const bool whole = scale_cols == 0 || scale_cols >= padded_cols;
  layout.scale_cols = static_cast<int32_t>(whole ? padded_cols : scale_cols);
  layout.num_blocks = static_cast<int32_t>(padded_cols / kBlockCols);
  layout.num_scales = static_cast<int32_t>(ceil_div<int64_t>(padded_cols, layout.scale_cols));
  layout.block_bytes = kPanelRows * kBlockCols * value_bits(values) / 8;
  layout.scales_in_blocks = values == PanelValues::kFp4 && scales == PanelScales::kE8m0 &&
                            layout.scale_cols == kBlockCols;
  if (layout.scales_in_blocks) {
    layout.block_bytes += kPanelRows;
    layout.panel_bytes = int64_t{layout.num_blocks} * layout.block_bytes;
    return layout;
  }
  const int64_t scales_bytes = int64_t{layout.num_scales} * kPanelRows * scale_bytes(scales);
  const int64_t zeros_bytes = zero_points ? int64_t{layout.num_scales} * kPanelRows : 0;
  layout.zeros_offset = align_up<int64_t>(scales_bytes, kLineBytes);
  layout.values_offset = align_up<int64_t>(layout.zeros_offset + zeros_bytes, kLineBytes);
  layout.panel_bytes = layout.values_offset + int64_t{layout.num_blocks} * layout.block_bytes;
  return layout;
}

/// Byte of a panel that holds a value, and the bit its value begins at (4-bit formats).
struct ValueLocation {
  int64_t byte = 0;
  int shift = 0;
};

constexpr ValueLocation value_location(const PanelLayout& layout, int64_t row, int64_t col) {
  const int64_t start = layout.values_offset + col / kBlockCols * layout.block_bytes;
  int64_t k = col % kBlockCols;
  const int bits = value_bits(layout.values);
  int shift = 0;
  if (bits == 4) {
    shift = k >= kBlockCols / 2 ? 4 : 0;
    k %= kBlockCols / 2;
  }
  if (layout.values == PanelValues::kBf16) k ^= 1;
  const int64_t bytes = bits == 4 ? k : k * bits / 8;  // before it, in this row and block
  const int64_t unit = interleaves_words(layout.values) ? 2 : 4;
  return {start + (bytes / unit * kPanelRows + row) * unit + bytes % unit, shift};
}

/// Byte of a panel at which the scale of (row, col) begins.
constexpr int64_t scale_location(const PanelLayout& layout, int64_t row, int64_t col) {
  if (layout.scales_in_blocks) {
    return (col / kBlockCols + 1) * layout.block_bytes - kPanelRows + row;
  }
  return (col / layout.scale_cols * kPanelRows + row) * scale_bytes(layout.scales);
}

/// Byte of a panel that holds the zero point of (row, col).
constexpr int64_t zero_location(const PanelLayout& layout, int64_t row, int64_t col) {
  return layout.zeros_offset + col / layout.scale_cols * kPanelRows + row;
}

}  // namespace switchyard
