#pragma once
// Reading a stored matrix: any format, any scale block, any strides. Host only; expects the default
// floating-point environment (E8M0 scales of 2^-127 make subnormal products).

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "core/number_formats.h"
#include "core/scale_layout.h"
#include "switchyard/weights.h"

namespace switchyard {

namespace detail {

template <size_t kCount, class Decode>
constexpr std::array<float, kCount> tabulate(Decode decode) {
  std::array<float, kCount> table{};
  for (size_t code = 0; code < kCount; ++code) table[code] = decode(static_cast<uint8_t>(code));
  return table;
}
inline constexpr auto kFp8E4m3Values = tabulate<256>(fp8_e4m3_to_f32);
inline constexpr auto kFp8E5m2Values = tabulate<256>(fp8_e5m2_to_f32);
inline constexpr auto kFp4E2m1Values = tabulate<16>(fp4_e2m1_to_f32);
inline constexpr auto kInt4Values =
    tabulate<16>([](uint8_t nibble) { return int4_to_f32(nibble); });

/// The table of a 4-bit format; int4 as if its zero point were 8.
inline const std::array<float, 16>& nibble_values(Format format) {
  return format == Format::kInt4 ? kInt4Values : kFp4E2m1Values;
}

template <class T, class Decode>
void read_row(const TensorView& values, int64_t row, int64_t cols, float* out, Decode decode) {
  const char* first = values.as<const char>() + row * values.stride(0) * int64_t{sizeof(T)};
  auto read = [&](int64_t stride) {
    for (int64_t col = 0; col < cols; ++col) {
      T code;
      std::memcpy(&code, first + col * stride * int64_t{sizeof(T)}, sizeof(T));
      out[col] = decode(code);
    }
  };
  // Spelled twice so that the usual stride is a constant to the compiler.
  values.stride(1) == 1 ? read(1) : read(values.stride(1));
}

/// Nibble of column `col`: two to a byte or eight to an int32, the lower column in the lower bits.
inline uint8_t nibble_at(const TensorView& values, int64_t row, int64_t col) {
  const int64_t bytes = element_bytes(values.type);
  const int64_t word = col / (2 * bytes);
  const int64_t byte = col / 2 - word * bytes;  // words are little-endian
  const auto* data = values.as<const uint8_t>() +
                     (row * values.stride(0) + word * values.stride(1)) * bytes + byte;
  return static_cast<uint8_t>(*data >> (4 * (col % 2)) & 15);
}

inline void read_nibble_row(const WeightMatrix& matrix, int64_t row, float* out) {
  const TensorView& values = matrix.values;
  const auto& table = nibble_values(matrix.format);
  if (values.stride(1) != 1) {
    for (int64_t col = 0; col < matrix.cols; ++col) out[col] = table[nibble_at(values, row, col)];
    return;
  }
  const uint8_t* bytes =
      values.as<const uint8_t>() + row * values.stride(0) * element_bytes(values.type);
  for (int64_t col = 0; col + 1 < matrix.cols; col += 2) {
    out[col] = table[bytes[col / 2] & 15];
    out[col + 1] = table[bytes[col / 2] >> 4];
  }
  if (matrix.cols % 2 != 0) out[matrix.cols - 1] = table[bytes[matrix.cols / 2] & 15];
}

/// Group of a column along K: actorder's table, else its block.
inline int64_t group_at(const WeightMatrix& matrix, int64_t col) {
  if (matrix.group_index.empty()) return scale_index(col, matrix.scale_block.cols);
  int32_t group;
  std::memcpy(&group, matrix.group_index.as<const char>() + col * matrix.group_index.stride(0) * 4,
              sizeof(group));
  return group;
}

/// The scale of (row, group) without global_scale.
inline float scale_of_group(const WeightMatrix& matrix, int64_t row, int64_t group) {
  const TensorView& scales = matrix.scales;
  if (scales.empty()) return 1.0f;
  const int64_t scale_row =
      scale_index(matrix.scale_row_begin + row * matrix.scale_row_step, matrix.scale_block.rows);
  const DataType type = scales.type == DataType::kU8 ? DataType::kF8E8m0 : scales.type;
  return load_as_f32(scales.data, type, scale_row * scales.stride(0) + group * scales.stride(1));
}

/// What int4 values of (row, group) still lack, given that the table assumed a zero point of 8.
inline float zero_point_offset(const WeightMatrix& matrix, int64_t row, int64_t group) {
  const TensorView& zeros = matrix.zero_points;
  if (zeros.empty()) return 0.0f;
  return static_cast<float>(
      kInt4ZeroPoint - zeros.as<const uint8_t>()[row * zeros.stride(0) + group * zeros.stride(1)]);
}

/// A row of stored values: no scale, int4 as if its zero point were 8. Exact.
inline void read_values(const WeightMatrix& matrix, int64_t row, float* out) {
  const TensorView& values = matrix.values;
  switch (matrix.format) {
    case Format::kF32:
      return read_row<float>(values, row, matrix.cols, out, [](float v) { return v; });
    case Format::kF16: return read_row<uint16_t>(values, row, matrix.cols, out, f16_to_f32);
    case Format::kBf16: return read_row<uint16_t>(values, row, matrix.cols, out, bf16_to_f32);
    case Format::kMxfp8:
    case Format::kFp8E4m3:
      return read_row<uint8_t>(values, row, matrix.cols, out,
                               [](uint8_t code) { return kFp8E4m3Values[code]; });
    case Format::kFp8E5m2:
      return read_row<uint8_t>(values, row, matrix.cols, out,
                               [](uint8_t code) { return kFp8E5m2Values[code]; });
    case Format::kInt8:
      return read_row<int8_t>(values, row, matrix.cols, out,
                              [](int8_t code) { return static_cast<float>(code); });
    case Format::kInt4:
    case Format::kMxfp4:
    case Format::kNvfp4: return read_nibble_row(matrix, row, out);
  }
}

/// out[col] = (out[col] + offset) * scale * global for columns of one group, rounded once.
inline void scale_values(const WeightMatrix& matrix, int64_t row, int64_t group, int64_t begin,
                         int64_t end, float* out) {
  if (const float offset = zero_point_offset(matrix, row, group); offset != 0.0f) {
    for (int64_t col = begin; col < end; ++col) out[col] += offset;
  }
  const float scale = scale_of_group(matrix, row, group);
  if (matrix.global_scale == 1.0f) {
    for (int64_t col = begin; col < end; ++col) out[col] *= scale;
    return;
  }
  const double both = static_cast<double>(scale) * static_cast<double>(matrix.global_scale);
  for (int64_t col = begin; col < end; ++col) {
    out[col] = static_cast<float>(static_cast<double>(out[col]) * both);
  }
}

}  // namespace detail

/// Row `row` as f32 [cols]: the exact real value rounded once to nearest. Nothing is rounded at all
/// for unscaled, E8M0-scaled and bf16- or f16-scaled 4- and 8-bit values.
inline void decode_row(const WeightMatrix& matrix, int64_t row, float* out) {
  detail::read_values(matrix, row, out);
  if (matrix.scales.empty() && matrix.zero_points.empty() && matrix.global_scale == 1.0f) return;
  if (!matrix.group_index.empty()) {
    for (int64_t col = 0; col < matrix.cols; ++col) {
      detail::scale_values(matrix, row, detail::group_at(matrix, col), col, col + 1, out);
    }
    return;
  }
  const int64_t width = matrix.scale_block.cols == 0 ? matrix.cols : matrix.scale_block.cols;
  for (int64_t begin = 0, group = 0; begin < matrix.cols; begin += width, ++group) {
    detail::scale_values(matrix, row, group, begin, std::min(begin + width, matrix.cols), out);
  }
}

/// Element (row, col) as the exact real number in double: value and scale have at most 24 bits
/// each. (A global_scale beside f32 scales, which no known format has, may round its last bit.)
inline double decode_element(const WeightMatrix& matrix, int64_t row, int64_t col) {
  WeightMatrix element = matrix;
  const int64_t group = detail::group_at(matrix, col);
  float value = 0.0f;
  if (element_bits(matrix.format) == 4) {
    value = detail::nibble_values(matrix.format)[detail::nibble_at(matrix.values, row, col)] +
            detail::zero_point_offset(matrix, row, group);
  } else {
    element.cols = 1;
    element.values.data = element.values.as<char>() +
                          col * element.values.stride(1) * element_bytes(element.values.type);
    detail::read_values(element, row, &value);
  }
  return static_cast<double>(value) *
         static_cast<double>(detail::scale_of_group(matrix, row, group)) *
         static_cast<double>(matrix.global_scale);
}

}  // namespace switchyard
