// The costs that choose between decode and prefill kernels: they follow what was measured, and the
// choice falls where it should.

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "core/cost_model.h"
#include "core/decode_cost.h"
#include "core/fp4_prefill_cost.h"

namespace switchyard {
namespace {

struct Shape {
  int64_t experts, top_k, inner, hidden;
};
constexpr Shape kR1Ep8{32, 8, 2048, 7168}, kR1Tp8{256, 8, 256, 7168}, kGptOss{128, 4, 2880, 2880};
constexpr int kSms = 132;

double rows_per_expert(const Shape& s, int64_t tokens) {
  return static_cast<double>(tokens * s.top_k) /
         expected_distinct_experts(s.experts, s.top_k, tokens);
}

/// Both GEMMs of a layer. bits: of a weight, scales included.
double decode_us(const Shape& s, int64_t tokens, DecodeLoop loop, double bits) {
  const int token_bytes = loop == DecodeLoop::kFp4ToBf16 || loop == DecodeLoop::kBf16 ? 2 : 1;
  const auto gemm = [&](int64_t rows, int64_t cols) {
    return decode_gemm_us({.experts = expected_distinct_experts(s.experts, s.top_k, tokens),
                           .rows_per_expert = rows_per_expert(s, tokens),
                           .unit_size = decode_unit_size(tokens, s.top_k, s.experts),
                           .weight_rows = rows,
                           .token_row_bytes = cols * token_bytes,
                           .expert_bytes = static_cast<double>(rows * cols) * bits / 8},
                          loop, kSms);
  };
  return gemm(2 * s.inner, s.hidden) + gemm(s.hidden, s.inner);
}

double prefill_us(const Shape& s, int64_t tokens, FragmentOrder order, int tile_rows) {
  const int token_bytes = order == FragmentOrder::kFp8 ? 1 : 2;
  const auto gemm = [&](int64_t rows, int64_t cols) {
    return fp4_prefill_us({.block_m = tile_rows,
                           .block_n = tile_rows <= fp4_prefill_cost::kLowRows ? 256 : 192,
                           .num_stages = 4},
                          {.weights = {.order = order},
                           .experts = expected_distinct_experts(s.experts, s.top_k, tokens),
                           .rows_per_expert = rows_per_expert(s, tokens),
                           .weight_rows = rows,
                           .token_row_bytes = cols * token_bytes},
                          kSms);
  };
  return gemm(2 * s.inner, s.hidden) + gemm(s.hidden, s.inner);
}

TEST(RowTiles, FollowsTheMeanAndItsScatter) {
  EXPECT_DOUBLE_EQ(expected_row_tiles(1, 64), 1);
  EXPECT_NEAR(expected_row_tiles(16, 64), 1, 1e-6);
  EXPECT_NEAR(expected_row_tiles(32, 32), 1.5, 0.05) << "half of the experts have more";
  EXPECT_NEAR(expected_row_tiles(1000, 100), 10.5, 0.1);
  double last = 0;
  for (double mean = 0; mean < 500; mean += 0.5) {
    const double tiles = expected_row_tiles(mean, 48);
    EXPECT_GE(tiles, last) << mean;
    EXPECT_GE(tiles * 48, mean) << "holds its rows";
    last = tiles;
  }
}

TEST(DecodeCost, FollowsTheMeasuredLayers) {
  struct Measured {
    Shape shape;
    int64_t tokens;
    DecodeLoop loop;
    double bits, us;
  };
  const Measured measured[] = {{kR1Ep8, 8, DecodeLoop::kFp4ToFp8, 4.25, 170},
                               {kR1Ep8, 64, DecodeLoop::kFp4ToFp8, 4.25, 192},
                               {kR1Tp8, 64, DecodeLoop::kFp4ToFp8, 4.25, 185},
                               {kR1Tp8, 256, DecodeLoop::kFp4ToFp8, 4.25, 217},
                               {kGptOss, 64, DecodeLoop::kFp4ToFp8, 4.25, 346},
                               {kGptOss, 256, DecodeLoop::kFp4ToFp8, 4.25, 424},
                               {kR1Ep8, 64, DecodeLoop::kFp4ToBf16, 4.25, 253},
                               {kGptOss, 64, DecodeLoop::kFp4ToBf16, 4.25, 408},
                               {kGptOss, 256, DecodeLoop::kFp4ToBf16, 4.25, 546},
                               {kR1Ep8, 64, DecodeLoop::kBytes, 8, 347},
                               {kR1Tp8, 64, DecodeLoop::kBytes, 8, 316},
                               {kR1Tp8, 256, DecodeLoop::kBytes, 8, 369},
                               {kR1Ep8, 64, DecodeLoop::kBf16, 16, 684}};
  for (const Measured& m : measured) {
    EXPECT_NEAR(decode_us(m.shape, m.tokens, m.loop, m.bits) / m.us, 1, 0.15)
        << "experts " << m.shape.experts << " T " << m.tokens << " bits " << m.bits;
  }
}

TEST(DecodeCost, NeverBelowTheRead) {
  for (const Shape& s : {kR1Ep8, kR1Tp8, kGptOss}) {
    for (const int64_t tokens : {1, 8, 64, 128}) {
      const double bytes = expected_distinct_experts(s.experts, s.top_k, tokens) * 3 *
                           static_cast<double>(s.inner * s.hidden) * 4.25 / 8;
      EXPECT_GE(decode_us(s, tokens, DecodeLoop::kFp4ToFp8, 4.25), bytes / 4.7e6);
    }
  }
}

constexpr int kTileRows[] = {144, 128, 96, 80, 64, 48, 32};

TEST(Fp4PrefillCost, ChoosesTheFastestMeasuredTileAndItsTime) {
  struct Measured {
    Shape shape;
    int64_t tokens;
    FragmentOrder order;
    double us[std::size(kTileRows)];  ///< both GEMMs; 0: not measured
  };
  constexpr FragmentOrder kFp8 = FragmentOrder::kFp8, kBf16 = FragmentOrder::kBf16;
  const Measured measured[] = {{kR1Ep8, 128, kFp8, {0, 271, 267, 243, 242, 226, 273}},
                               {kR1Ep8, 256, kFp8, {337, 314, 305, 268, 327, 380, 430}},
                               {kR1Ep8, 512, kFp8, {420, 457, 511, 476, 513, 572, 746}},
                               {kR1Ep8, 1024, kFp8, {729, 765, 783, 857, 903, 1042, 1356}},
                               {kGptOss, 1024, kFp8, {0, 561, 538, 516, 497, 483, 586}},
                               {kGptOss, 2048, kFp8, {707, 645, 620, 592, 705, 828, 966}},
                               {kGptOss, 4096, kFp8, {941, 996, 1132, 1085, 1164, 1301, 1721}},
                               {kGptOss, 8192, kFp8, {1700, 1729, 1829, 1980, 2068, 2447, 3198}},
                               {kR1Tp8, 1024, kFp8, {0, 338, 332, 305, 289, 267, 333}},
                               {kR1Tp8, 2048, kFp8, {456, 407, 384, 347, 404, 465, 519}},
                               {kR1Tp8, 4096, kFp8, {591, 624, 678, 633, 655, 702, 926}},
                               {kR1Tp8, 6144, kFp8, {933, 839, 868, 909, 913, 1019, 0}},
                               {kR1Ep8, 256, kBf16, {512, 490, 480, 431, 523, 638, 745}},
                               {kR1Ep8, 1024, kBf16, {1146, 1246, 1296, 1528, 1562, 1848, 2467}},
                               {kGptOss, 1024, kBf16, {0, 859, 836, 847, 781, 742, 986}},
                               {kGptOss, 4096, kBf16, {1362, 1554, 1817, 1843, 1915, 2215, 2968}}};
  for (const Measured& m : measured) {
    double best = 1e30, chosen = 0, predicted = 1e30;
    for (size_t i = 0; i < std::size(kTileRows); ++i) {
      if (m.us[i] == 0) continue;
      best = std::min(best, m.us[i]);
      const double us = prefill_us(m.shape, m.tokens, m.order, kTileRows[i]);
      if (us < predicted) predicted = us, chosen = m.us[i];
    }
    const auto which = testing::Message() << "experts " << m.shape.experts << " T " << m.tokens
                                          << " order " << static_cast<int>(m.order);
    EXPECT_LE(chosen, 1.03 * best) << which;
    EXPECT_NEAR(predicted / chosen, 1, 0.15) << which;
  }
}

}  // namespace
}  // namespace switchyard
