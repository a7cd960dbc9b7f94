#include "cpu/pack_weights.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/number_formats.h"
#include "core/weight_matrix.h"
#include "switchyard/error.h"

namespace switchyard::cpu {
namespace {

constexpr int kMaxRowBlockBytes = kBlockCols * 4;

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
void read_row_block(const WeightMatrix& matrix, int64_t row, int64_t first_col, uint8_t* out) {
  const TensorView& values = matrix.values;
  const int64_t bits = element_bits(matrix.format);
  const int64_t block_bytes = kBlockCols * bits / 8;
  const int64_t unit = element_bytes(values.type);
  const auto* source = values.as<const uint8_t>() + row * values.stride(0) * unit;
  if (values.stride(1) == 1 && first_col + kBlockCols <= matrix.cols) {
    std::memcpy(out, source + first_col * bits / 8, static_cast<size_t>(block_bytes));
    return;
  }
  std::memset(out, 0, static_cast<size_t>(block_bytes));
  const int64_t unit_cols = unit * 8 / bits;
  const int64_t end = std::min(ceil_div(matrix.cols - first_col, unit_cols), block_bytes / unit);
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

/// Rows of one half panel by unit: units of the same column lie side by side.
template <class Unit>
void interleave(const uint8_t* rows, int row_bytes, uint8_t* out) {
  const int units = row_bytes / static_cast<int>(sizeof(Unit));
  for (int row = 0; row < kHalfPanelRows; ++row) {
    for (int unit = 0; unit < units; ++unit) {
      Unit value;
      std::memcpy(&value, rows + row * row_bytes + unit * static_cast<int>(sizeof(Unit)),
                  sizeof(Unit));
      std::memcpy(out + (unit * kHalfPanelRows + row) * static_cast<int>(sizeof(Unit)), &value,
                  sizeof(Unit));
    }
  }
}

/// Blocks of a panel from a function that delivers 32 columns of a row as the panel stores them.
template <class ReadRowBlock>
void pack_values(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, uint8_t* out,
                 ReadRowBlock&& read) {
  const int row_bytes = layout.block_bytes / kPanelRows;
  uint8_t rows[kHalfPanelRows * kMaxRowBlockBytes];
  uint8_t* half_block = out + layout.values_offset;
  for (int64_t block = 0; block < layout.num_blocks; ++block) {
    for (int half = 0; half < 2; ++half, half_block += layout.block_bytes / 2) {
      for (int lane = 0; lane < kHalfPanelRows; ++lane) {
        const int64_t row = panel * kPanelRows + half * kHalfPanelRows + lane;
        uint8_t* to = rows + lane * row_bytes;
        if (row < matrix.rows) {
          read(row, block * kBlockCols, to);
        } else {
          std::memset(to, 0, static_cast<size_t>(row_bytes));
        }
      }
      if (interleaves_words(layout.values)) {
        interleave<uint16_t>(rows, row_bytes, half_block);
      } else {
        interleave<uint32_t>(rows, row_bytes, half_block);
      }
    }
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
  pack_values(matrix, layout, panel, out, [&](int64_t row, int64_t col, uint8_t* to) {
    std::memcpy(to, rows.data() + (row - panel * kPanelRows) * padded_cols + col,
                kBlockCols * sizeof(float));
  });
}

void pack_stored(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, uint8_t* out,
                 const std::string& name) {
  const PanelValues values = layout.values;
  pack_values(matrix, layout, panel, out, [&](int64_t row, int64_t col, uint8_t* to) {
    read_row_block(matrix, row, col, to);
    if (value_bits(values) == 4) pair_nibbles(to);
    if (values == PanelValues::kInt8) {
      for (int i = 0; i < kBlockCols; ++i) to[i] = static_cast<uint8_t>(to[i] ^ 0x80);
    }
    if (values == PanelValues::kFp8E4m3) {
      // 0x7f and 0xff are E4M3's NaN, which the kernels would take for 480.
      bool nan = false;
      for (int i = 0; i < kBlockCols; ++i) nan |= (to[i] & 0x7f) == 0x7f;
      if (nan) throw_not_finite(name, "value", row, col);
    }
  });
}

void pack_scales(const WeightMatrix& matrix, const PanelLayout& layout, int64_t panel, uint8_t* out,
                 const std::string& name) {
  const int64_t bytes = scale_bytes(layout.scales);
  const TensorView& zeros = matrix.zero_points;
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const int64_t row = panel * kPanelRows + r;
    if (row >= matrix.rows) break;  // the buffer is zeroed: scale 0, zero point 0
    const int64_t scale_row =
        scale_index(matrix.scale_row_begin + row * matrix.scale_row_step, matrix.scale_block.rows);
    for (int64_t group = 0; group < layout.num_scales; ++group) {
      const int64_t col = group * layout.scale_cols;
      if (col >= matrix.cols) break;
      if (bytes != 0) {
        const TensorView& scales = matrix.scales;
        const DataType type = layout.scales == PanelScales::kE8m0 ? DataType::kF8E8m0 : scales.type;
        const int64_t at = scale_row * scales.stride(0) + group * scales.stride(1);
        if (!std::isfinite(load_as_f32(scales.data, type, at))) {
          throw_not_finite(name, "scale", row, col);
        }
        std::memcpy(out + scale_location(layout, r, col), scales.as<const uint8_t>() + at * bytes,
                    static_cast<size_t>(bytes));
      }
      if (layout.zero_points) {
        out[zero_location(layout, r, col)] =
            zeros.as<const uint8_t>()[row * zeros.stride(0) + group * zeros.stride(1)];
      }
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
  pack_scales(matrix, packing.layout, panel, out, name);
  pack_stored(matrix, packing.layout, panel, out, name);
}

}  // namespace switchyard::cpu
