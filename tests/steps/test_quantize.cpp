// The quantize step: scales against their rule in double, codes against a search for the nearest
// value, cpu against reference bit for bit, round trips through decode_row.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/block_quantize.h"
#include "core/weight_matrix.h"
#include "cpu/quantize_kernels.h"
#include "cpu/steps.h"
#include "reference/steps.h"
#include "support/quantize_cases.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using Case = test::QuantizeCase;
using test::describe;
using test::quantize_cases;

constexpr uint8_t kPoison = 0xa7;
constexpr float kInf = std::numeric_limits<float>::infinity();

/// Inputs, and outputs with a guard behind them.
struct Problem {
  Case how{};
  int64_t input_rows = 0, rows = 0, cols = 0;
  DataType type = DataType::kF32;
  std::vector<uint8_t> input{};
  std::vector<float> channel_scale{};
  std::vector<int32_t> row_index{};

  int64_t value_cols() const { return test::code_cols(how.format, cols); }
  float value(int64_t row, int64_t col) const {  // as the definition reads it
    if (!row_index.empty()) row = row_index[static_cast<size_t>(row)];
    if (row < 0 || row >= input_rows) return 0.0f;
    auto normal = [](float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; };
    const float x = normal(load_as_f32(input.data(), type, row * cols + col));
    if (channel_scale.empty()) return x;
    return normal(x * normal(channel_scale[static_cast<size_t>(col)]));
  }
};

struct Result {
  std::vector<uint8_t> values{}, scales{};
  bool operator==(const Result&) const = default;
};

constexpr size_t kGuard = 64;

Result run(const Problem& problem, void (*quantize)(const ops::QuantizeArgs&)) {
  const Case& how = problem.how;
  const int64_t num_scale_rows = scale_rows(how.block, problem.rows);
  const int64_t num_scale_cols = scale_cols(how.block, problem.cols);
  Result result;
  result.values.assign(static_cast<size_t>(problem.rows * problem.value_cols()) + kGuard, kPoison);
  result.scales.assign(
      static_cast<size_t>(num_scale_rows * num_scale_cols * element_bytes(how.scale_type)) + kGuard,
      kPoison);
  ops::QuantizeArgs args;
  args.input = TensorView::contiguous(problem.input.data(), problem.type,
                                      {problem.input_rows, problem.cols});
  if (!problem.row_index.empty()) {
    args.row_index =
        TensorView::contiguous(problem.row_index.data(), DataType::kI32, {problem.rows});
  }
  if (!problem.channel_scale.empty()) {
    args.channel_scale =
        TensorView::contiguous(problem.channel_scale.data(), DataType::kF32, {problem.cols});
  }
  args.format = how.format;
  args.scale_block = how.block;
  args.rounding = how.rounding;
  args.power_of_two_scales = how.power_of_two;
  args.global_scale = how.global_scale;
  args.values = TensorView::contiguous(result.values.data(), test::code_type(how.format),
                                       {problem.rows, problem.value_cols()});
  args.scales = TensorView::contiguous(result.scales.data(), how.scale_type,
                                       {num_scale_rows, num_scale_cols});
  quantize(args);
  for (auto* buffer : {&result.values, &result.scales}) {
    for (size_t i = buffer->size() - kGuard; i < buffer->size(); ++i) {
      EXPECT_EQ((*buffer)[i], kPoison) << "wrote past the end";
    }
  }
  return result;
}

/// Rows of different characters: ordinary, zeros, wide range, tiny, huge, infinite, NaN, midpoints.
float adversarial(int64_t row, int64_t col, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto bits = static_cast<uint32_t>(random());
  switch (row % 9) {
    case 1: return col % 2 == 0 ? 0.0f : -0.0f;
    case 2: return f32_from_bits(bits % 0x7f000000u | (bits & 1u) << 31);  // any exponent
    case 3: return normal(random) * 1e-38f;
    case 4: return normal(random) * 1e-42f;  // subnormal
    case 5: return normal(random) * 1e37f;
    case 6: return col == 3 ? -kInf : normal(random);
    case 7: return col == 40 ? NAN : normal(random);
    case 8: return static_cast<float>(static_cast<int>(bits % 57) - 28) / 4;  // many exact ties
    default: return normal(random);
  }
}

Problem make_problem(const Case& how, int64_t rows, int64_t cols, DataType type, bool gather,
                     bool smooth, uint32_t seed) {
  std::mt19937 random(seed);
  Problem problem{.how = how, .input_rows = rows, .rows = rows, .cols = cols, .type = type};
  problem.input.resize(static_cast<size_t>(rows * cols * element_bytes(type)));
  for (int64_t i = 0; i < rows * cols; ++i) {
    store_f32(problem.input.data(), type, i, adversarial(i / cols, i % cols, random));
  }
  if (smooth) {
    for (int64_t col = 0; col < cols; ++col) {
      problem.channel_scale.push_back(std::exp(std::normal_distribution<float>()(random)));
    }
    problem.channel_scale[0] = 1e-39f;
  }
  if (gather) {
    problem.rows = rows + 5;
    for (int64_t row = 0; row < problem.rows; ++row) {
      problem.row_index.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(rows)));
    }
    problem.row_index[1] = -1;
    problem.row_index[3] = static_cast<int32_t>(rows);
  }
  return problem;
}

// ---- the truth

/// Non-negative values of a format in code order (integers: 0 ... max).
std::vector<double> make_magnitudes(Format format) {
  std::vector<double> grid;
  if (format == Format::kInt8 || format == Format::kInt4) {
    grid.resize(format == Format::kInt8 ? 128 : 8);
    std::iota(grid.begin(), grid.end(), 0.0);
    return grid;
  }
  const bool fp4 = element_bits(format) == 4;
  const int mantissa_bits = fp4 ? 1 : 3;
  const int bias = fp4 ? 1 : 7;
  for (int code = 0; code < (fp4 ? 8 : 127); ++code) {
    const int e = code >> mantissa_bits;
    const double m = std::ldexp(code % (1 << mantissa_bits), -mantissa_bits);
    grid.push_back(e == 0 ? std::ldexp(m, 1 - bias) : std::ldexp(1 + m, e - bias));
  }
  return grid;
}

const std::vector<double>& magnitudes(Format format) {
  static std::map<Format, std::vector<double>> grids;
  std::vector<double>& grid = grids[format];
  if (grid.empty()) grid = make_magnitudes(format);
  return grid;
}

/// Nearest value of the grid, ties to the even code, saturating.
int nearest_code(const std::vector<double>& grid, double magnitude) {
  const auto above = std::lower_bound(grid.begin(), grid.end(), magnitude);
  if (above == grid.begin()) return 0;
  if (above == grid.end()) return static_cast<int>(grid.size()) - 1;
  const int upper = static_cast<int>(above - grid.begin());
  const double to_upper = *above - magnitude;
  const double to_lower = magnitude - *(above - 1);
  return to_upper < to_lower || (to_upper == to_lower && upper % 2 == 0) ? upper : upper - 1;
}

uint8_t stored_code(Format format, int magnitude_code, bool negative) {
  switch (format) {
    case Format::kInt8: return static_cast<uint8_t>(negative ? -magnitude_code : magnitude_code);
    case Format::kInt4:
      return static_cast<uint8_t>(8 + (negative ? -magnitude_code : magnitude_code));
    case Format::kMxfp4:
    case Format::kNvfp4: return static_cast<uint8_t>(magnitude_code | (negative ? 8 : 0));
    default: return static_cast<uint8_t>(magnitude_code | (negative ? 0x80 : 0));
  }
}

/// The stored scale of a block by its documented rule, in double where the rule is a real number.
double expected_scale(const Case& how, double amax) {
  const double max = how.format == Format::kInt8     ? 127
                     : how.format == Format::kInt4   ? 7
                     : element_bits(how.format) == 4 ? 6
                                                     : 448;
  const bool mx = how.format == Format::kMxfp4 || how.format == Format::kMxfp8;
  if (mx) {
    const auto element = how.format;
    return std::ldexp(1.0,
                      mx_scale_exponent(static_cast<float>(amax), element, how.rounding) - 127);
  }
  if (how.format == Format::kNvfp4) {
    const std::vector<double>& e4m3 = magnitudes(Format::kFp8E4m3);
    const float six = 6.0f * how.global_scale;
    const float real = static_cast<float>(amax / static_cast<double>(six));
    return e4m3[static_cast<size_t>(nearest_code(e4m3, static_cast<double>(real)))];
  }
  if (amax == 0) return 1;
  double scale = std::max(amax / max, 0x1p-126);
  if (how.power_of_two) {
    double power = 0x1p-126;
    while (power * max < amax) power *= 2;
    return power;
  }
  scale = static_cast<double>(static_cast<float>(scale));
  if (how.scale_type == DataType::kBf16) {
    int exponent;
    const double fraction = std::frexp(scale, &exponent);
    scale = std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
  }
  return scale;
}

uint8_t code_at(const Problem& problem, const Result& result, int64_t row, int64_t col) {
  if (element_bits(problem.how.format) == 8) {
    return result.values[static_cast<size_t>(row * problem.cols + col)];
  }
  const int byte = result.values[static_cast<size_t>(row * problem.value_cols() + col / 2)];
  return static_cast<uint8_t>(col % 2 == 0 ? byte % 16 : byte / 16);
}

void check_block(const Problem& problem, const Result& result, int64_t scale_row,
                 int64_t scale_col) {
  const Case& how = problem.how;
  const std::vector<double>& grid = magnitudes(how.format);
  const int64_t height = how.block.rows == 0 ? problem.rows : how.block.rows;
  const int64_t width = how.block.cols == 0 ? problem.cols : how.block.cols;
  const int64_t row_end = std::min((scale_row + 1) * height, problem.rows);
  const int64_t col_end = std::min((scale_col + 1) * width, problem.cols);
  double amax = 0;
  bool finite = true;
  for (int64_t row = scale_row * height; row < row_end; ++row) {
    for (int64_t col = scale_col * width; col < col_end; ++col) {
      const auto value = static_cast<double>(problem.value(row, col));
      finite = finite && std::isfinite(value);
      amax = std::max(amax, std::fabs(value));
    }
  }
  const int64_t at = scale_row * scale_cols(how.block, problem.cols) + scale_col;
  const float scale = load_as_f32(result.scales.data(), how.scale_type, at);
  if (finite) {
    ASSERT_EQ(static_cast<double>(scale), expected_scale(how, amax)) << "amax " << amax;
  } else {
    ASSERT_TRUE(std::isnan(scale));
  }
  const float whole_scale = scale * how.global_scale;
  const bool zero = !finite || whole_scale == 0.0f;
  const float inverse = zero ? 0.0f : static_cast<float>(1.0 / static_cast<double>(whole_scale));
  for (int64_t row = scale_row * height; row < row_end; ++row) {
    for (int64_t col = scale_col * width; col < col_end; ++col) {
      const float value = problem.value(row, col);
      const bool negative = !zero && std::signbit(value);
      const auto scaled = static_cast<double>(zero ? 0.0f : std::fabs(value * inverse));
      ASSERT_EQ(code_at(problem, result, row, col),
                stored_code(how.format, nearest_code(grid, scaled), negative))
          << "row " << row << " col " << col << " value " << value << " scale " << scale;
    }
  }
}

void check(const Problem& problem, const Result& result) {
  for (int64_t row = 0; row < scale_rows(problem.how.block, problem.rows); ++row) {
    for (int64_t col = 0; col < scale_cols(problem.how.block, problem.cols); ++col) {
      check_block(problem, result, row, col);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  if (element_bits(problem.how.format) == 4 && problem.cols % 2 != 0) {
    for (int64_t row = 0; row < problem.rows; ++row) {
      ASSERT_EQ(code_at(problem, result, row, problem.cols),
                problem.how.format == Format::kInt4 ? 8 : 0)
          << "padding of row " << row;
    }
  }
}

class Quantize : public testing::TestWithParam<Case> {};

TEST_P(Quantize, MatchesTheRuleAndBothBackendsAgree) {
  uint32_t seed = 1;
  for (DataType type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
    for (int64_t cols : {1, 33, 192, 704}) {
      for (bool gather : {false, true}) {
        for (bool smooth : {false, true}) {
          const Problem problem = make_problem(GetParam(), 20, cols, type, gather, smooth, ++seed);
          SCOPED_TRACE(describe(GetParam()) + ", input " + to_string(type) + ", cols " +
                       std::to_string(cols) + (gather ? ", gathered" : "") +
                       (smooth ? ", smooth" : ""));
          const Result reference = run(problem, reference::quantize);
          check(problem, reference);
          ASSERT_FALSE(HasFatalFailure());
          ASSERT_EQ(run(problem, cpu::quantize), reference);
        }
      }
    }
  }
}

TEST_P(Quantize, BackendsAgreeOnManyRowsAndProductionWidths) {
  for (int64_t rows : {1, 63, 300}) {
    for (int64_t cols : {2880, 7168}) {
      const Problem problem =
          make_problem(GetParam(), rows, cols, DataType::kBf16, rows == 300, false, 77);
      ASSERT_EQ(run(problem, cpu::quantize), run(problem, reference::quantize))
          << describe(GetParam()) << " " << rows << "x" << cols;
    }
  }
}

TEST_P(Quantize, TakesNoRows) {
  Problem problem{.how = GetParam(), .input_rows = 4, .rows = 0, .cols = 64};
  problem.input.assign(4 * 64 * 4, 0x3f);
  const Result reference = run(problem, reference::quantize);
  EXPECT_EQ(run(problem, cpu::quantize), reference);
  check(problem, reference);  // a tensor without rows has the scale of zeros
}

/// The stored matrix that a result describes.
WeightMatrix as_matrix(const Problem& problem, const Result& result) {
  WeightMatrix matrix{.format = problem.how.format, .rows = problem.rows, .cols = problem.cols};
  matrix.values = TensorView::contiguous(result.values.data(), DataType::kU8,
                                         {problem.rows, problem.value_cols()});
  matrix.scales = TensorView::contiguous(
      result.scales.data(), problem.how.scale_type,
      {scale_rows(problem.how.block, problem.rows), scale_cols(problem.how.block, problem.cols)});
  matrix.scale_block = problem.how.block;
  matrix.global_scale = problem.how.global_scale;
  return matrix;
}

TEST_P(Quantize, DecodesToWithinHalfAStep) {
  Problem problem = make_problem(GetParam(), 9, 704, DataType::kF32, false, false, 3);
  std::mt19937 random(4);
  for (int64_t i = 0; i < 9 * 704; ++i) {
    store_f32(problem.input.data(), DataType::kF32, i, std::normal_distribution<float>()(random));
  }
  const Result result = run(problem, cpu::quantize);
  const WeightMatrix matrix = as_matrix(problem, result);
  const std::vector<double>& grid = magnitudes(problem.how.format);
  for (int64_t row = 0; row < 9; ++row) {
    for (int64_t col = 0; col < 704; ++col) {
      const auto value = static_cast<double>(problem.value(row, col));
      const double error = std::fabs(decode_element(matrix, row, col) - value);
      const double scale = static_cast<double>(detail::scale_of_group(
                               matrix, row, scale_index(col, problem.how.block.cols))) *
                           static_cast<double>(problem.how.global_scale);
      const double magnitude = std::min(std::fabs(value) / scale, grid.back());
      const auto upper = static_cast<size_t>(
          std::lower_bound(grid.begin() + 1, grid.end(), magnitude) - grid.begin());
      const double half_step = scale * (grid[upper] - grid[upper - 1]) / 2;
      const double clipped = std::max(0.0, std::fabs(value) - grid.back() * scale);
      ASSERT_LE(error, std::max(half_step, clipped) * (1 + 1e-6)) << row << " " << col;
      if (problem.how.rounding == ScaleRounding::kUp && problem.how.format != Format::kNvfp4 &&
          problem.how.scale_type != DataType::kBf16) {
        ASSERT_LE(clipped, 1e-6 * std::fabs(value)) << "only kDown, kEven and kNvfp4 may clip";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Quantize, testing::ValuesIn(quantize_cases()),
                         [](const testing::TestParamInfo<Case>& c) {
                           std::string name = describe(c.param);
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return std::to_string(c.index) + "_" + name;
                         });

TEST(QuantizeMx, IsIdempotentWithTheDefaultRounding) {
  for (Format format : {Format::kMxfp4, Format::kMxfp8}) {
    Problem first =
        make_problem({format, {1, 32}, DataType::kF8E8m0}, 6, 704, DataType::kF32, false, false, 9);
    first.rows = first.input_rows = 6;  // without the rows of NaN and infinity
    const Result once = run(first, cpu::quantize);
    Problem second = first;
    std::vector<float> decoded(704);
    for (int64_t row = 0; row < 6; ++row) {
      decode_row(as_matrix(first, once), row, decoded.data());
      std::memcpy(&second.input[static_cast<size_t>(row) * 704 * 4], decoded.data(), 704 * 4);
    }
    const Result twice = run(second, cpu::quantize);
    std::vector<float> again(704);
    for (int64_t row = 0; row < 6; ++row) {
      decode_row(as_matrix(first, once), row, decoded.data());
      decode_row(as_matrix(second, twice), row, again.data());
      for (size_t col = 0; col < 704; ++col) {
        if (std::fabs(decoded[col]) < 0x1p-126f) continue;  // flushed on the way in
        ASSERT_EQ(again[col], decoded[col]) << row << " " << col;
      }
    }
  }
}

TEST(Dequantize, UndoesQuantizeThroughThePublicOps) {
  const int64_t rows = 5, cols = 192;
  std::mt19937 random(31);
  std::vector<float> input(rows * cols), output(rows * cols + 1, -1.0f);
  for (float& value : input) value = static_cast<float>(static_cast<int>(random() % 15) - 7);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; col += 32) input[static_cast<size_t>(row * cols + col)] = 7;
  }
  std::vector<uint8_t> values(rows * cols / 2);
  std::vector<float> scales(rows * cols / 32);
  WeightMatrix matrix{.format = Format::kInt4, .rows = rows, .cols = cols, .scale_block = {1, 32}};
  matrix.values = TensorView::contiguous(values.data(), DataType::kU8, {rows, cols / 2});
  matrix.scales = TensorView::contiguous(scales.data(), DataType::kF32, {rows, cols / 32});
  ops::quantize({.input = TensorView::contiguous(input.data(), DataType::kF32, {rows, cols}),
                 .format = Format::kInt4,
                 .scale_block = {1, 32},
                 .values = matrix.values,
                 .scales = matrix.scales});
  ops::dequantize(matrix, TensorView::contiguous(output.data(), DataType::kF32, {rows, cols}));
  for (size_t i = 0; i < input.size(); ++i) ASSERT_EQ(output[i], input[i]) << i;
  EXPECT_EQ(output.back(), -1.0f);
  EXPECT_THROW(ops::dequantize(
                   matrix, TensorView::contiguous(output.data(), DataType::kF32, {rows, cols - 1})),
               Error);
}

TEST(QuantizeInt8, GivesTheWholeCodeRange) {
  Problem problem{.how = {Format::kInt8, {1, 0}}, .input_rows = 1, .rows = 1, .cols = 255};
  problem.input.resize(255 * 4);
  for (int64_t i = 0; i < 255; ++i) {
    store_f32(problem.input.data(), DataType::kF32, i, static_cast<float>(i - 127) * 0.25f);
  }
  const Result result = run(problem, cpu::quantize);
  for (size_t i = 0; i < 255; ++i) {
    EXPECT_EQ(static_cast<int8_t>(result.values[i]), static_cast<int>(i) - 127);
  }
  EXPECT_EQ(load_as_f32(result.scales.data(), DataType::kF32, 0), 0.25f);
}

/// Floats of every exponent with mantissas around rounding edges, and random ones; all finite.
std::vector<float> encoder_inputs() {
  std::vector<float> inputs;
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (uint32_t top = 0; top < 64; ++top) {
      for (uint32_t delta : {0u, 1u, 2u, 0x7ffffeu, 0x7fffffu}) {
        const uint32_t mantissa = ((top << 17) + delta) & 0x7fffffu;
        inputs.push_back(f32_from_bits(exponent << 23 | mantissa));
        inputs.push_back(-inputs.back());
      }
    }
  }
  std::mt19937 random(21);
  while (inputs.size() < 1000000) {
    const float value = f32_from_bits(static_cast<uint32_t>(random()));
    if (std::isfinite(value)) inputs.push_back(value);
  }
  return inputs;
}

void expect_encoders_agree(const cpu::QuantizeKernels& kernels) {
  const std::vector<float> inputs = encoder_inputs();
  const auto count = static_cast<int64_t>(inputs.size());
  const float inverse = 1.0f;
  std::vector<uint8_t> codes(inputs.size());
  const std::pair<cpu::QuantizeCode, Format> pairs[] = {
      {cpu::QuantizeCode::kE4m3, Format::kFp8E4m3},
      {cpu::QuantizeCode::kInt8, Format::kInt8},
      {cpu::QuantizeCode::kE2m1, Format::kMxfp4},
      {cpu::QuantizeCode::kInt4, Format::kInt4}};
  for (auto [code, format] : pairs) {
    kernels.encode[0][static_cast<size_t>(code)]({inputs.data(), nullptr, count, count}, &inverse,
                                                 codes.data());
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int got = element_bits(format) == 8 ? codes[i]
                      : i % 2 == 0              ? codes[i / 2] % 16
                                                : codes[i / 2] / 16;
      ASSERT_EQ(got, quantize_value(format, flush_subnormal(inputs[i]), {1.0f, 1.0f}))
          << to_string(format) << " of " << inputs[i];
    }
  }
  std::vector<uint16_t> halves(65536);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  for (size_t i = 0; i < halves.size(); ++i) {
    for (auto [type, value] : {std::pair{DataType::kF16, f16_to_f32(halves[i])},
                               std::pair{DataType::kBf16, bf16_to_f32(halves[i])}}) {
      uint32_t amax = 0;
      kernels.amax[static_cast<size_t>(type)]({&halves[i], nullptr, 1, 1}, &amax);
      if (std::isnan(value)) {
        ASSERT_GT(amax, kInfinityBits) << to_string(type) << " " << i;
      } else {
        ASSERT_EQ(amax, f32_bits(std::fabs(flush_subnormal(value)))) << to_string(type) << " " << i;
      }
    }
  }
}

TEST(QuantizeKernels, BaselineGivesTheBitsOfCore) { expect_encoders_agree(cpu::kQuantizeBaseline); }
TEST(QuantizeKernels, Avx2GivesTheBitsOfCore) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no AVX2 here";
  expect_encoders_agree(cpu::kQuantizeAvx2);
}

}  // namespace
}  // namespace switchyard
