// Reading stored matrices: every format with every kind of scale, partial blocks, strides, zero
// points and actorder, against the formula applied to codes the test itself keeps.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "core/weight_matrix.h"

namespace switchyard {
namespace {

constexpr float kPoison = -12345.0f;

/// Value of a code by the format's definition, not by the library's decoders.
double code_value(Format format, uint32_t code) {
  auto small_float = [&](int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double sign = code >> (exponent_bits + mantissa_bits) != 0 ? -1 : 1;
    const int e = static_cast<int>(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const double m = std::ldexp(code & ((1u << mantissa_bits) - 1), -mantissa_bits);
    return sign * (e == 0 ? std::ldexp(m, 1 - bias) : std::ldexp(1 + m, e - bias));
  };
  switch (format) {
    case Format::kF32: return static_cast<double>(__builtin_bit_cast(float, code));
    case Format::kF16: return small_float(5, 10);
    case Format::kBf16: return small_float(8, 7);
    case Format::kMxfp8:
    case Format::kFp8E4m3: return small_float(4, 3);
    case Format::kFp8E5m2: return small_float(5, 2);
    case Format::kInt8: return static_cast<int8_t>(code);
    case Format::kInt4: return static_cast<int>(code) - 8;
    case Format::kMxfp4:
    case Format::kNvfp4: return small_float(2, 1);
  }
  return NAN;
}

uint32_t random_code(Format format, std::mt19937& random) {
  for (;;) {
    const auto bits = static_cast<uint32_t>(random());
    switch (format) {
      case Format::kF32: return (bits & 0x807fffffu) | (100 + bits % 50) << 23;
      case Format::kF16:
        if ((bits & 0x7c00u) != 0x7c00u) return bits & 0xffffu;
        break;
      case Format::kBf16: return (bits & 0x807fu) | (100 + bits % 50) << 7;
      case Format::kMxfp8:
      case Format::kFp8E4m3:
        if ((bits & 0x7fu) != 0x7fu) return bits & 0xffu;
        break;
      case Format::kFp8E5m2:
        if ((bits & 0x7cu) != 0x7cu) return bits & 0xffu;
        break;
      case Format::kInt8: return bits & 0xffu;
      default: return bits & 0xfu;
    }
  }
}

DataType storage_type(Format format) {
  switch (format) {
    case Format::kF32: return DataType::kF32;
    case Format::kF16: return DataType::kF16;
    case Format::kBf16: return DataType::kBf16;
    case Format::kMxfp8:
    case Format::kFp8E4m3: return DataType::kF8E4m3;
    case Format::kFp8E5m2: return DataType::kF8E5m2;
    case Format::kInt8: return DataType::kI8;
    default: return DataType::kU8;
  }
}

/// A stored matrix together with what it must decode to.
class Stored {
 public:
  Stored(Format format, int64_t rows, int64_t cols, DataType type, uint32_t seed = 1)
      : rows_(rows), cols_(cols) {
    std::mt19937 random(seed);
    const int64_t per_word = element_bits(format) == 4 ? 2 * element_bytes(type) : 1;
    const int64_t words = ceil_div(cols, per_word);
    bytes_.resize(static_cast<size_t>(rows * words * element_bytes(type)));
    for (int64_t i = 0; i < rows * cols; ++i) {
      const uint32_t code = random_code(format, random);
      real_.push_back(code_value(format, code));
      const int64_t row = i / cols, col = i % cols;
      if (per_word == 1) {
        std::memcpy(&bytes_[static_cast<size_t>(i * element_bytes(type))], &code,
                    static_cast<size_t>(element_bytes(type)));
      } else {
        const int64_t byte = row * words * element_bytes(type) + col / 2;
        bytes_[static_cast<size_t>(byte)] |= static_cast<uint8_t>(code << (4 * (col % 2)));
      }
    }
    matrix_.format = format;
    matrix_.rows = rows;
    matrix_.cols = cols;
    matrix_.values = TensorView::contiguous(bytes_.data(), type, {rows, words});
  }

  /// Random scales of the type, one per block, all of them different from their neighbours.
  void scale_by(ScaleBlock block, DataType type, uint32_t seed = 2) {
    std::mt19937 random(seed);
    const int64_t per_col = block.rows == 0 ? 1 : ceil_div(rows_, block.rows);
    const int64_t per_row = block.cols == 0 ? 1 : ceil_div(cols_, block.cols);
    const Format code_format = type == DataType::kF32    ? Format::kF32
                               : type == DataType::kBf16 ? Format::kBf16
                               : type == DataType::kF16  ? Format::kF16
                                                         : Format::kFp8E4m3;
    scale_bytes_.resize(static_cast<size_t>(per_col * per_row * element_bytes(type)));
    std::vector<double> scales;
    for (int64_t i = 0; i < per_col * per_row; ++i) {
      uint32_t code = random_code(code_format, random);
      if (type == DataType::kF8E8m0 || type == DataType::kU8) {
        code = static_cast<uint32_t>(random() % 255);
        scales.push_back(std::ldexp(1.0, static_cast<int>(code) - 127));
      } else {
        scales.push_back(code_value(code_format, code));
      }
      std::memcpy(&scale_bytes_[static_cast<size_t>(i * element_bytes(type))], &code,
                  static_cast<size_t>(element_bytes(type)));
    }
    for (int64_t i = 0; i < rows_ * cols_; ++i) {
      const int64_t scale_row = block.rows == 0 ? 0 : i / cols_ / block.rows;
      const int64_t scale_col = block.cols == 0 ? 0 : i % cols_ / block.cols;
      real_[static_cast<size_t>(i)] *= scales[static_cast<size_t>(scale_row * per_row + scale_col)];
    }
    matrix_.scale_block = block;
    matrix_.scales = TensorView::contiguous(scale_bytes_.data(), type, {per_col, per_row});
  }

  void scale_globally(float global_scale) {
    matrix_.global_scale = global_scale;
    for (double& value : real_) value *= static_cast<double>(global_scale);
  }

  WeightMatrix& matrix() { return matrix_; }
  double real(int64_t row, int64_t col) const {
    return real_[static_cast<size_t>(row * cols_ + col)];
  }

 private:
  int64_t rows_, cols_;
  std::vector<uint8_t> bytes_{}, scale_bytes_{};
  std::vector<double> real_{};
  WeightMatrix matrix_{};
};

/// Every element of `matrix` is real(row, col), exactly in double and rounded once in f32.
void expect_decodes_to(const WeightMatrix& matrix,
                       const std::function<double(int64_t, int64_t)>& real) {
  std::vector<float> row_values(static_cast<size_t>(matrix.cols) + 1);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    std::fill(row_values.begin(), row_values.end(), kPoison);
    decode_row(matrix, row, row_values.data());
    for (int64_t col = 0; col < matrix.cols; ++col) {
      const float got = row_values[static_cast<size_t>(col)];
      ASSERT_EQ(got, static_cast<float>(real(row, col)))
          << to_string(matrix.format) << " row " << row << " col " << col;
      ASSERT_EQ(std::signbit(got), std::signbit(real(row, col))) << row << " " << col;
      ASSERT_EQ(decode_element(matrix, row, col), real(row, col)) << row << " " << col;
    }
    ASSERT_EQ(row_values.back(), kPoison) << "wrote past the row";
  }
}

void expect_decodes(Stored& stored) {
  expect_decodes_to(stored.matrix(),
                    [&](int64_t row, int64_t col) { return stored.real(row, col); });
}

TEST(WeightMatrix, DecodesUnscaledFormats) {
  for (Format format : {Format::kF32, Format::kF16, Format::kBf16, Format::kFp8E4m3,
                        Format::kFp8E5m2, Format::kInt8, Format::kInt4, Format::kMxfp4}) {
    for (int64_t cols : {1, 2, 7, 192, 704}) {
      Stored stored(format, 3, cols, storage_type(format));
      expect_decodes(stored);
    }
  }
}

TEST(WeightMatrix, DecodesEveryScaleBlockWithPartialBlocks) {
  const ScaleBlock blocks[] = {{0, 0}, {1, 0}, {128, 128}, {1, 128}, {1, 32}, {32, 32}, {1, 16}};
  for (Format format : {Format::kFp8E4m3, Format::kFp8E5m2, Format::kInt8, Format::kInt4}) {
    for (DataType scale : {DataType::kF32, DataType::kBf16, DataType::kF16, DataType::kF8E8m0}) {
      for (const ScaleBlock& block : blocks) {
        for (int64_t cols : {2880, 1408, 704, 192, 129}) {
          const int64_t rows = block.rows == 128 ? 130 : 3;
          Stored stored(format, rows, cols, storage_type(format));
          stored.scale_by(block, scale);
          expect_decodes(stored);
        }
      }
    }
  }
}

TEST(WeightMatrix, DecodesMxAndNvfp4) {
  for (int64_t cols : {2880, 1408, 704, 192, 33}) {
    for (DataType scale : {DataType::kF8E8m0, DataType::kU8}) {
      Stored mxfp4(Format::kMxfp4, 5, cols, DataType::kU8);
      mxfp4.scale_by({1, 32}, scale);
      expect_decodes(mxfp4);
      Stored mxfp8(Format::kMxfp8, 5, cols, DataType::kF8E4m3);
      mxfp8.scale_by({1, 32}, scale);
      expect_decodes(mxfp8);
    }
    Stored nvfp4(Format::kNvfp4, 5, cols, DataType::kU8);
    nvfp4.scale_by({1, 16}, DataType::kF8E4m3);
    nvfp4.scale_globally(1.0f / 2688);
    expect_decodes(nvfp4);
  }
}

TEST(WeightMatrix, DecodesAllFp4CodesWithAllScales) {
  std::vector<uint8_t> values(256 * 16), scales(256);
  for (size_t row = 0; row < 256; ++row) {
    scales[row] = static_cast<uint8_t>(row);
    for (size_t pair = 0; pair < 16; ++pair) {  // the 16 codes in both nibbles
      values[row * 16 + pair] = static_cast<uint8_t>(pair | (15 - pair) << 4);
    }
  }
  auto code_at = [](int64_t col) {
    return static_cast<uint32_t>(col % 2 == 0 ? col / 2 : 15 - col / 2);
  };
  const auto value_view = TensorView::contiguous(values.data(), DataType::kU8, {256, 16});
  WeightMatrix mxfp4{.format = Format::kMxfp4, .rows = 255, .cols = 32, .values = value_view};
  mxfp4.scales = TensorView::contiguous(scales.data(), DataType::kF8E8m0, {256, 1});
  mxfp4.scale_block = {1, 32};
  expect_decodes_to(mxfp4, [&](int64_t row, int64_t col) {
    return std::ldexp(code_value(Format::kMxfp4, code_at(col)), static_cast<int>(row) - 127);
  });
  float decoded[32];
  decode_row(mxfp4, 255, decoded);
  for (float value : decoded) EXPECT_TRUE(std::isnan(value));
  EXPECT_TRUE(std::isnan(decode_element(mxfp4, 255, 3)));
  for (int64_t begin : {0, 128}) {  // E4M3 scales of both signs; the last code of each is NaN
    WeightMatrix nvfp4{.format = Format::kNvfp4, .rows = 127, .cols = 32, .values = value_view};
    nvfp4.scales = TensorView::contiguous(scales.data() + begin, DataType::kF8E4m3, {128, 1});
    nvfp4.scale_block = {1, 32};
    nvfp4.global_scale = 0.3f;
    expect_decodes_to(nvfp4, [&](int64_t row, int64_t col) {
      return code_value(Format::kNvfp4, code_at(col)) *
             code_value(Format::kFp8E4m3, static_cast<uint32_t>(begin + row)) *
             static_cast<double>(0.3f);
    });
    decode_row(nvfp4, 127, decoded);
    for (float value : decoded) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(WeightMatrix, DecodesAllFp8CodesWithAllE8m0Scales) {
  std::vector<uint8_t> values(256 * 256), scales(256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(i);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<uint8_t>(i);
  WeightMatrix matrix{.format = Format::kMxfp8, .rows = 255, .cols = 256};
  matrix.values = TensorView::contiguous(values.data(), DataType::kF8E4m3, {256, 256});
  matrix.scales = TensorView::contiguous(scales.data(), DataType::kF8E8m0, {256, 1});
  matrix.scale_block = {1, 256};
  std::vector<float> decoded(256);
  for (int64_t row = 0; row < 256; ++row) {
    decode_row(matrix, row, decoded.data());
    for (uint32_t code = 0; code < 256; ++code) {
      const float got = decoded[code];
      if (row == 255 || code % 128 == 127) {
        ASSERT_TRUE(std::isnan(got)) << row << " " << code;
        continue;
      }
      const double real = std::ldexp(code_value(Format::kMxfp8, code), static_cast<int>(row) - 127);
      ASSERT_EQ(got, static_cast<float>(real)) << row << " " << code;
      ASSERT_EQ(decode_element(matrix, row, code), real) << row << " " << code;
    }
  }
}

TEST(WeightMatrix, ReadsInt4FromBytesAndFromInt32WordsAlike) {
  for (int64_t cols : {8, 192, 704, 2880}) {
    for (DataType type : {DataType::kU8, DataType::kI8, DataType::kI32}) {
      Stored stored(Format::kInt4, 4, cols, type);
      stored.scale_by({1, 32}, DataType::kBf16);
      expect_decodes(stored);
    }
  }
}

/// Every element of a view, moved elsewhere: [rows, cols] of any strides from a contiguous one.
std::vector<uint8_t> rearrange(const TensorView& from, int64_t row_stride, int64_t col_stride,
                               int64_t total) {
  const int64_t bytes = element_bytes(from.type);
  std::vector<uint8_t> out(static_cast<size_t>(total * bytes), 0xee);
  for (int64_t row = 0; row < from.extent(0); ++row) {
    for (int64_t col = 0; col < from.extent(1); ++col) {
      std::memcpy(&out[static_cast<size_t>((row * row_stride + col * col_stride) * bytes)],
                  from.as<char>() + (row * from.stride(0) + col * from.stride(1)) * bytes,
                  static_cast<size_t>(bytes));
    }
  }
  return out;
}

TEST(WeightMatrix, FollowsTheStridesOfFusedAndTransposedTensors) {
  for (Format format : {Format::kF32, Format::kBf16, Format::kFp8E4m3, Format::kInt8, Format::kInt4,
                        Format::kMxfp4}) {
    for (DataType type : {storage_type(format), DataType::kI32}) {
      if (type == DataType::kI32 && element_bits(format) != 4) continue;
      const int64_t rows = 6, cols = 64;
      Stored stored(format, rows, cols, type);
      stored.scale_by({1, 32}, DataType::kF32);
      const TensorView packed = stored.matrix().values;
      const int64_t words = packed.extent(1);
      struct Strides {
        int64_t row, col;
      };
      const Strides cases[] = {{2 * words, 1},   // every other row
                               {1, rows},        // transposed
                               {2, 2 * rows},    // every other column of a transposed tensor
                               {words + 3, 1}};  // padded rows
      for (const Strides& s : cases) {
        const int64_t total = (rows - 1) * s.row + (words - 1) * s.col + 1;
        std::vector<uint8_t> bytes = rearrange(packed, s.row, s.col, total);
        stored.matrix().values.data = bytes.data();
        stored.matrix().values.strides = {s.row, s.col};
        expect_decodes(stored);
      }
    }
  }
}

TEST(WeightMatrix, CutsAFusedTensorThroughItsScaleBlocks) {
  // gate and up of 192 rows each in one tensor of 128-row blocks: the cut is inside block 1.
  const int64_t half = 192, cols = 300;
  Stored fused(Format::kFp8E4m3, 2 * half, cols, DataType::kF8E4m3);
  fused.scale_by({128, 128}, DataType::kF32);
  const WeightMatrix whole = fused.matrix();
  for (int64_t part = 0; part < 2; ++part) {
    WeightMatrix rows = whole;  // concatenated
    rows.rows = half;
    rows.values.data = whole.values.as<char>() + part * half * cols;
    rows.values.shape[0] = half;
    rows.scale_row_begin = part * half;
    expect_decodes_to(rows, [&](int64_t r, int64_t c) { return fused.real(part * half + r, c); });

    WeightMatrix every_other = whole;  // interleaved
    every_other.rows = half;
    every_other.values.data = whole.values.as<char>() + part * cols;
    every_other.values.shape[0] = half;
    every_other.values.strides[0] = 2 * cols;
    every_other.scale_row_begin = part;
    every_other.scale_row_step = 2;
    expect_decodes_to(every_other,
                      [&](int64_t r, int64_t c) { return fused.real(2 * r + part, c); });
  }
}

TEST(WeightMatrix, FollowsTheStridesOfScales) {
  const int64_t rows = 7, cols = 96;
  Stored stored(Format::kInt8, rows, cols, DataType::kI8);
  stored.scale_by({1, 32}, DataType::kBf16);
  const TensorView scales = stored.matrix().scales;
  std::vector<uint8_t> bytes = rearrange(scales, 1, rows, rows * 3);
  stored.matrix().scales.data = bytes.data();
  stored.matrix().scales.strides = {1, rows};
  expect_decodes(stored);
}

TEST(WeightMatrix, SubtractsZeroPointsAndFollowsActorder) {
  const int64_t rows = 5, cols = 200, group = 32, groups = 7;
  std::mt19937 random(5);
  std::vector<uint8_t> values(static_cast<size_t>(rows * cols / 2)), zeros(rows * groups);
  std::vector<float> scales(rows * groups);
  std::vector<int32_t> group_index(cols);
  for (auto& v : values) v = static_cast<uint8_t>(random());
  for (auto& z : zeros) z = static_cast<uint8_t>(random() % 16);
  for (auto& s : scales) s = static_cast<float>(random() % 1000 + 1) / 777;
  for (auto& g : group_index) g = static_cast<int32_t>(random() % groups);

  WeightMatrix matrix{.format = Format::kInt4, .rows = rows, .cols = cols};
  matrix.values = TensorView::contiguous(values.data(), DataType::kU8, {rows, cols / 2});
  matrix.scales = TensorView::contiguous(scales.data(), DataType::kF32, {rows, groups});
  matrix.scale_block = {1, group};
  for (bool zero_points : {false, true}) {
    for (bool actorder : {false, true}) {
      matrix.zero_points = zero_points
                               ? TensorView::contiguous(zeros.data(), DataType::kU8, {rows, groups})
                               : TensorView{};
      matrix.group_index = actorder
                               ? TensorView::contiguous(group_index.data(), DataType::kI32, {cols})
                               : TensorView{};
      expect_decodes_to(matrix, [&](int64_t row, int64_t col) {
        const int64_t g = actorder ? group_index[static_cast<size_t>(col)] : col / group;
        const auto at = static_cast<size_t>(row * groups + g);
        const int byte = values[static_cast<size_t>((row * cols + col) / 2)];
        const int nibble = col % 2 == 0 ? byte % 16 : byte / 16;
        const int integer = nibble - (zero_points ? zeros[at] : 8);
        // A zero of the integer keeps the sign of its product, which is positive.
        return static_cast<double>(integer) * static_cast<double>(scales[at]);
      });
    }
  }
}

}  // namespace
}  // namespace switchyard
