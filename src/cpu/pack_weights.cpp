#include "cpu/pack_weights.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/number_formats.h"
#include "core/weight_matrix.h"
#include "cpu/activation_rows.h"
#include "switchyard/error.h"

namespace switchyard::cpu {
namespace {

PanelValues values_of(Format format) {
  switch (format) {
    case Format::kF32: return PanelValues::kF32;
    case Format::kF16: return PanelValues::kF16;
    case Format::kBf16: return PanelValues::kBf16;
    case Format::kFp8E4m3:
    case Format::kMxfp8: return PanelValues::kFp8E4m3;
    case Format::kFp8E5m2: return PanelValues::kFp8E5m2;
    case Format::kInt8: return PanelValues::kInt8;
    case Format::kInt4: return PanelValues::kInt4;
    case Format::kMxfp4:
    case Format::kNvfp4: return PanelValues::kFp4;
  }
  return PanelValues::kF32;
}

/// The panel's scale type for a stored one; false when there is none.
bool scales_of(const TensorView& scales, PanelScales& out) {
  if (scales.empty()) {
    out = PanelScales::kNone;
    return true;
  }
  switch (scales.type) {
    case DataType::kF32: out = PanelScales::kF32; return true;
    case DataType::kBf16: out = PanelScales::kBf16; return true;
    case DataType::kF16: out = PanelScales::kF16; return true;
    case DataType::kF8E4m3: out = PanelScales::kE4m3; return true;
    case DataType::kU8:
    case DataType::kF8E8m0: out = PanelScales::kE8m0; return true;
    default: return false;
  }
}

/// Whether panels hold this matrix as it is stored.
bool fits_panels(const WeightMatrix& matrix, PanelValues values, PanelScales scales, bool integer) {
  if (!matrix.group_index.empty()) return false;
  const bool plain_float = value_bits(values) >= 16;
  if (plain_float) return scales == PanelScales::kNone && matrix.global_scale == 1.0f;
  const int64_t cols = matrix.scale_block.cols;
  if (cols == 0 || cols >= matrix.cols || cols % kBlockCols == 0) return true;
  return cols == kBlockCols / 2 && matrix.zero_points.empty() &&
         (values == PanelValues::kFp4 || !integer);
}

/// Spreads 8 nibbles over 8 bytes, the lowest first.
uint64_t spread_nibbles(uint32_t nibbles) {
  uint64_t x = nibbles;
  x = (x | x << 16) & 0x0000ffff0000ffffull;
  x = (x | x << 8) & 0x00ff00ff00ff00ffull;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
}

/// 32 nibbles in column order to 16 bytes: column c in the low and c + 16 in the high nibble of
/// byte c.
void pair_nibbles(uint8_t* bytes) {
  uint32_t words[4];
  std::memcpy(words, bytes, sizeof(words));
  const uint64_t paired[2] = {spread_nibbles(words[0]) | spread_nibbles(words[2]) << 4,
                              spread_nibbles(words[1]) | spread_nibbles(words[3]) << 4};
  std::memcpy(bytes, paired, sizeof(paired));
}

/// The stored bytes of 32 columns of one row, zeros past the end.
template <int kBytes>
void read_row_block(const WeightMatrix& matrix, int64_t row, int64_t first_col, uint8_t* out) {
  const TensorView& values = matrix.values;
  const int64_t unit = element_bytes(values.type);
  const auto* source = values.as<const uint8_t>() + row * values.stride(0) * unit;
  if (values.stride(1) == 1 && first_col + kBlockCols <= matrix.cols) {
    std::memcpy(out, source + first_col * kBytes / kBlockCols, kBytes);
    return;
  }
  std::memset(out, 0, kBytes);
  const int64_t unit_cols = unit * kBlockCols / kBytes;
  const int64_t end = std::min(ceil_div(matrix.cols - first_col, unit_cols), kBytes / unit);
  for (int64_t i = 0; i < end; ++i) {
    const uint8_t* from = source + (first_col / unit_cols + i) * values.stride(1) * unit;
    std::memcpy(out + i * unit, from, static_cast<size_t>(unit));
  }
}

[[noreturn]] void throw_not_finite(const std::string& name, const char* what, int64_t row,
                                   int64_t col) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} {} at row {}, column {} is not a number; weights must be finite",
                          name, what, row, col));
}

/// Rows of one block by unit: units of the same columns lie side by side.
template <class Unit, int kRowBytes>
void interleave(const uint8_t* rows, uint8_t* out) {
  constexpr int kUnit = sizeof(Unit);
  for (int unit = 0; unit < kRowBytes / kUnit; ++unit) {
    for (int row = 0; row < kPanelRows; ++row) {
      Unit value;
      std::memcpy(&value, rows + row * kRowBytes + unit * kUnit, sizeof(Unit));
      std::memcpy(out + (unit * kPanelRows + row) * kUnit, &value, sizeof(Unit));
    }
  }
}

/// Blocks of a panel from a function that delivers 32 columns of a row as the panel stores them.
/// Sizes are constants, so that the copies are registers.
template <class Unit, int kRowBytes, class ReadRowBlock>
void pack_values(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, uint8_t* out,
                 const ReadRowBlock& read) {
  uint8_t rows[kPanelRows * kRowBytes];
  uint8_t* to = out + layout.values_offset;
  for (int64_t block = 0; block < layout.num_blocks; ++block, to += layout.block_bytes) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t row = panel * kPanelRows + r;
      if (row < matrix.rows) {
        read(row, block * kBlockCols, rows + r * kRowBytes);
      } else {
        std::memset(rows + r * kRowBytes, 0, kRowBytes);
      }
    }
    interleave<Unit, kRowBytes>(rows, to);
  }
}

/// Exact f32 of any format, 32 rows at a time.
void pack_decoded(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel,
                  uint8_t* out, const std::string& name) {
  const int64_t padded_cols = int64_t{layout.num_blocks} * kBlockCols;
  std::vector<float> rows(static_cast<size_t>(kPanelRows * padded_cols), 0.0f);
  const int64_t end = std::min<int64_t>(kPanelRows, matrix.rows - panel * kPanelRows);
  for (int64_t r = 0; r < end; ++r) {
    float* row = rows.data() + r * padded_cols;
    decode_row(matrix, panel * kPanelRows + r, row);
    for (int64_t col = 0; col < matrix.cols; ++col) {
      if (!std::isfinite(row[col])) {
        throw_not_finite(name, "value", panel * kPanelRows + r, col);
      }
    }
  }
  const auto read = [&](int64_t row, int64_t col, uint8_t* to) {
    std::memcpy(to, rows.data() + (row - panel * kPanelRows) * padded_cols + col,
                kBlockCols * sizeof(float));
  };
  pack_values<uint32_t, kBlockCols * sizeof(float)>(matrix, layout, panel, out, read);
}

void pack_stored(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, uint8_t* out,
                 const std::string& name) {
  const auto nibbles = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<16>(matrix, row, col, to);
    pair_nibbles(to);
  };
  const auto offset_int8 = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<32>(matrix, row, col, to);
    for (int i = 0; i < kBlockCols; ++i) to[i] = static_cast<uint8_t>(to[i] ^ 0x80);
  };
  const auto fp8_e4m3 = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<32>(matrix, row, col, to);
    // 0x7f and 0xff are E4M3's NaN, which the kernels would take for 480.
    uint8_t nan = 0;
    for (int i = 0; i < kBlockCols; ++i) nan |= static_cast<uint8_t>((to[i] & 0x7f) == 0x7f);
    if (nan != 0) throw_not_finite(name, "value", row, col);
  };
  const auto bytes = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<32>(matrix, row, col, to);
  };
  const auto words = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<64>(matrix, row, col, to);
  };
  const auto swapped_words = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<64>(matrix, row, col, to);
    swap_pairs(reinterpret_cast<const uint8_t*>(to), kBlockCols, to);
  };
  const auto floats = [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block<128>(matrix, row, col, to);
  };
  switch (layout.values) {
    case PanelValues::kFp4:
    case PanelValues::kInt4: return pack_values<uint32_t, 16>(matrix, layout, panel, out, nibbles);
    case PanelValues::kInt8:
      return pack_values<uint32_t, 32>(matrix, layout, panel, out, offset_int8);
    case PanelValues::kFp8E4m3:
      return pack_values<uint16_t, 32>(matrix, layout, panel, out, fp8_e4m3);
    case PanelValues::kFp8E5m2: return pack_values<uint16_t, 32>(matrix, layout, panel, out, bytes);
    case PanelValues::kBf16:
      return pack_values<uint32_t, 64>(matrix, layout, panel, out, swapped_words);
    case PanelValues::kF16: return pack_values<uint16_t, 64>(matrix, layout, panel, out, words);
    case PanelValues::kF32: return pack_values<uint32_t, 128>(matrix, layout, panel, out, floats);
  }
}

/// Scales as they are stored. A code with all bits of `special` set is infinite or not a number.
template <class Code>
void copy_scales(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, Code special,
                 uint8_t* out, const std::string& name) {
  const TensorView& scales = matrix.scales;
  const int64_t end = std::min<int64_t>(kPanelRows, matrix.rows - panel * kPanelRows);
  const int64_t groups = ceil_div<int64_t>(matrix.cols, layout.scale_cols);
  for (int64_t r = 0; r < end; ++r) {
    const int64_t row = panel * kPanelRows + r;
    const int64_t scale_row =
        scale_index(matrix.scale_row_begin + row * matrix.scale_row_step, matrix.scale_block.rows);
    const Code* from = scales.as<const Code>() + scale_row * scales.stride(0);
    for (int64_t group = 0; group < groups; ++group) {
      Code code;
      std::memcpy(&code, from + group * scales.stride(1), sizeof(code));
      if ((code & special) == special) {
        throw_not_finite(name, "scale", row, group * layout.scale_cols);
      }
      std::memcpy(out + scale_location(layout, r, group * layout.scale_cols), &code, sizeof(code));
    }
  }
}

void pack_scales(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, uint8_t* out,
                 const std::string& name) {
  const auto copy = [&]<class Code>(Code special) {
    copy_scales<Code>(matrix, layout, panel, special, out, name);
  };
  switch (layout.scales) {
    case PanelScales::kNone: return;
    case PanelScales::kE8m0: return copy(uint8_t{0xff});
    case PanelScales::kE4m3: return copy(uint8_t{0x7f});
    case PanelScales::kF32: return copy(uint32_t{0x7f800000});
    case PanelScales::kBf16: return copy(uint16_t{0x7f80});
    case PanelScales::kF16: return copy(uint16_t{0x7c00});
  }
}

void pack_zero_points(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel,
                      uint8_t* out) {
  const TensorView& zeros = matrix.zero_points;
  const int64_t end = std::min<int64_t>(kPanelRows, matrix.rows - panel * kPanelRows);
  for (int64_t r = 0; r < end; ++r) {
    const auto* from = zeros.as<const uint8_t>() + (panel * kPanelRows + r) * zeros.stride(0);
    for (int64_t col = 0; col < matrix.cols; col += layout.scale_cols) {
      out[zero_location(layout, r, col)] = from[col / layout.scale_cols * zeros.stride(1)];
    }
  }
}

}  // namespace

Packing choose_packing(const WeightMatrix& matrix, bool integer) {
  const PanelValues values = values_of(matrix.format);
  PanelScales scales = PanelScales::kNone;
  if (!scales_of(matrix.scales, scales) || !fits_panels(matrix, values, scales, integer)) {
    return {panel_layout(PanelValues::kF32, PanelScales::kNone, false, 0, matrix.cols), true};
  }
  const bool zero_points = values == PanelValues::kInt4 && !matrix.zero_points.empty();
  return {panel_layout(values, scales, zero_points, matrix.scale_block.cols, matrix.cols), false};
}

void pack_panel(const WeightMatrix& matrix, const Packing& packing, int64_t panel, uint8_t* out,
                const std::string& name) {
  if (packing.decoded) {
    pack_decoded(matrix, packing.layout, panel, out, name);
    return;
  }
  // Rows and groups past the end keep the buffer's zeros: scale 0.
  pack_scales(matrix, packing.layout, panel, out, name);
  if (packing.layout.zero_points) pack_zero_points(matrix, packing.layout, panel, out);
  pack_stored(matrix, packing.layout, panel, out, name);
}

}  // namespace switchyard::cpu
