// The support library's own promises: what it encodes decodes close to what was meant, guards and
// poison notice writes, and compare() finds the worst element.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/matrix_slice.h"
#include "core/weight_matrix.h"
#include "support/buffer.h"
#include "support/compare.h"
#include "support/random_weights.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::MatrixOptions;
using test::Random;

std::vector<float> decode(const WeightMatrix& m) {
  std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
  for (int64_t r = 0; r < m.rows; ++r) decode_row(m, r, out.data() + r * m.cols);
  return out;
}

double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(error / size);
}

/// The same seed draws the same real values for every format, so each encoding has a known distance
/// from the f32 one.
TEST(RandomMatrix, EveryFormatStoresTheSameValuesToItsPrecision) {
  struct Case {
    Format format;
    double error;
  };
  for (const Case& c :
       {Case{Format::kBf16, 2.3e-3}, Case{Format::kF16, 3e-4}, Case{Format::kFp8E4m3, 3.7e-2},
        Case{Format::kFp8E5m2, 7.3e-2}, Case{Format::kInt8, 1.3e-2}, Case{Format::kInt4, 0.12},
        Case{Format::kMxfp4, 0.16}, Case{Format::kMxfp8, 3.7e-2}, Case{Format::kNvfp4, 0.13}}) {
    MatrixOptions options = test::usual_matrix(c.format);
    if (c.format == Format::kNvfp4) options.global_scale = 0.01f;
    Random random(5), same(5);
    const auto stored = test::random_matrix(random, 48, 200, options);
    options.format = Format::kF32;
    const auto exact = test::random_matrix(same, 48, 200, options);
    EXPECT_LT(rms_difference(decode(stored.matrix), decode(exact.matrix)), c.error)
        << to_string(c.format);
    EXPECT_GT(rms_difference(decode(stored.matrix), decode(exact.matrix)), c.error / 20);
  }
}

TEST(RandomMatrix, OrientationAndWordsDoNotChangeTheValues) {
  for (Format format : {Format::kBf16, Format::kFp8E4m3, Format::kMxfp4, Format::kInt4}) {
    MatrixOptions options = test::usual_matrix(format);
    Random first(9);
    const auto plain = test::random_matrix(first, 40, 72, options);
    options.transposed = true;
    options.int32_words = element_bits(format) == 4;
    Random second(9);
    const auto turned = test::random_matrix(second, 40, 72, options);
    EXPECT_EQ(decode(plain.matrix), decode(turned.matrix)) << to_string(format);
  }
}

TEST(RandomMatrix, RowsOfAFusedTensorKeepTheirScales) {
  Random random(3);
  const auto fused = test::random_matrix(random, 300, 200, test::usual_matrix(Format::kFp8E4m3));
  const std::vector<float> all = decode(fused.matrix);
  const std::vector<float> odd = decode(matrix_rows(fused.matrix, 1, 2, 150));
  for (size_t r = 0; r < 150; ++r)
    for (size_t c = 0; c < 200; ++c) ASSERT_EQ(odd[r * 200 + c], all[(2 * r + 1) * 200 + c]);
}

TEST(RandomMatrix, Int4ZeroPointsAndActorderStayCloseToTheValues) {
  MatrixOptions options = test::usual_matrix(Format::kInt4);
  options.group_index = true;
  Random random(4), same(4);
  const auto stored = test::random_matrix(random, 32, 128, options);
  options.format = Format::kF32;
  const auto exact = test::random_matrix(same, 32, 128, options);
  EXPECT_LT(rms_difference(decode(stored.matrix), decode(exact.matrix)), 0.12);

  options = test::usual_matrix(Format::kInt4);
  options.zero_points = true;
  Random again(6);
  const auto asymmetric = test::random_matrix(again, 32, 128, options);
  options.format = Format::kF32;
  Random same_again(6);
  const auto target = test::random_matrix(same_again, 32, 128, options);
  // A zero point away from 8 cuts one tail, hence the wider bound.
  EXPECT_LT(rms_difference(decode(asymmetric.matrix), decode(target.matrix)), 0.35);
}

TEST(GuardedMemory, NoticesWritesOutsideAndInside) {
  test::GuardedMemory memory(1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % kWorkspaceAlignment, 0u);
  EXPECT_TRUE(memory.canaries_intact());
  EXPECT_TRUE(memory.untouched(0, 1000));
  memory.data()[999] = std::byte{0};
  EXPECT_FALSE(memory.untouched(990, 1000));
  EXPECT_TRUE(memory.untouched(0, 999));
  memory.data()[1000] = std::byte{0};
  EXPECT_FALSE(memory.canaries_intact());
}

TEST(Buffer, PoisonReadsAsNan) {
  for (DataType type : {DataType::kF32, DataType::kBf16, DataType::kF16, DataType::kF64})
    EXPECT_TRUE(std::isnan(Buffer(type, {3}).at(2))) << to_string(type);
  EXPECT_TRUE(Buffer(DataType::kF32, {3}).untouched());
}

TEST(Compare, FindsTheWorstElementOfItsRow) {
  const Buffer reference = Buffer::of(DataType::kF64, {2, 3}, {1, 1, 1, 10, 10, 10});
  const Buffer output = Buffer::of(DataType::kF32, {2, 3}, {1, 1, 1.5, 10, 11, 10});
  const Comparison c = compare(output, reference);
  EXPECT_EQ(c.worst_row, 0);
  EXPECT_EQ(c.worst_column, 2);
  EXPECT_DOUBLE_EQ(c.worst_error, 0.5);
  EXPECT_DOUBLE_EQ(c.rms_error, std::sqrt(1.25 / 303));
  EXPECT_EQ(c.num_nan, 0);
}

TEST(Compare, CountsNanAndRefusesErrorsInZeroRows) {
  const Buffer reference = Buffer::of(DataType::kF64, {2, 2}, {0, 0, 1, 1});
  const Buffer nan = Buffer::of(DataType::kF32, {2, 2}, {0, 0, 1, NAN});
  EXPECT_EQ(compare(nan, reference).num_nan, 1);
  EXPECT_EQ(compare(nan, reference).worst_row, 1);
  EXPECT_FALSE(compare(nan, reference).within({.rms = 1e9, .worst = 1e9}));
  const Buffer tiny = Buffer::of(DataType::kF32, {2, 2}, {0, 1e-30, 1, 1});
  EXPECT_FALSE(compare(tiny, reference).within({.rms = 1, .worst = 1e9}));
  EXPECT_TRUE(compare(reference, reference).within({}));
}

TEST(Compare, FailureNamesTokenSlotAndExpert) {
  const Buffer reference = Buffer::of(DataType::kF64, {2, 2, 1}, {1, 1, 1, 1});
  const Buffer output = Buffer::of(DataType::kF32, {2, 2, 1}, {1, 1, 1, 2});
  const Buffer ids = Buffer::of(DataType::kI32, {2, 2}, {4, 5, 6, 7});
  const testing::AssertionResult result =
      test::within(output, reference, {.rms = 0.1, .worst = 0.1}, ids);
  EXPECT_FALSE(result);
  EXPECT_NE(std::string(result.message()).find("row 3: token 1, slot 1, expert 7"),
            std::string::npos)
      << result.message();
}

TEST(RandomTopk, IdsAreDistinctAndWeightsSumToOne) {
  Random random(1);
  const Buffer ids = test::random_topk_ids(random, 50, 7, 9);
  const Buffer weights = test::random_topk_weights(random, 50, 7);
  for (int64_t t = 0; t < 50; ++t) {
    std::vector<int> seen(9);
    double sum = 0;
    for (int64_t k = 0; k < 7; ++k) {
      ++seen.at(static_cast<size_t>(ids.at(t * 7 + k)));
      sum += weights.at(t * 7 + k);
    }
    EXPECT_LE(*std::max_element(seen.begin(), seen.end()), 1);
    EXPECT_NEAR(sum, 1.0, 1e-6);
  }
}

}  // namespace
}  // namespace switchyard
