// The choice of experts against a brute-force sort of keys in long double, over logits full of
// ties.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "core/gating.h"

namespace switchyard {
namespace {

using Real = long double;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Case {
  RoutingSpec spec;
  int64_t num_experts;
  int64_t top_k;
  bool biased = false;
};

Real plain_score(Scoring scoring, Real logit) {
  switch (scoring) {
    case Scoring::kSoftmax: return std::exp(logit);
    case Scoring::kSigmoid: return 1 / (1 + std::exp(-logit));
    case Scoring::kSqrtSoftplus: return std::sqrt(std::log1p(std::exp(logit)));
  }
  return NAN;
}

/// Indices of the `count` largest, ties to the lower index.
std::vector<int32_t> largest(const std::vector<Real>& values, int64_t count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(count));
  return order;
}

/// The definition in include/switchyard/layer_spec.h, in long double.
std::vector<int32_t> expected_choice(const Case& c, const std::vector<float>& logits,
                                     const std::vector<float>& bias) {
  std::vector<Real> keys;
  Real total = 0;
  for (const float logit : logits) {
    keys.push_back(plain_score(c.spec.scoring, logit));
    total += keys.back();
  }
  for (size_t e = 0; e < keys.size(); ++e) {
    if (c.spec.scoring == Scoring::kSoftmax) keys[e] /= total;
    if (c.biased) keys[e] += bias[e];
  }
  if (c.spec.num_groups > 1) {
    const size_t size = keys.size() / static_cast<size_t>(c.spec.num_groups);
    std::vector<Real> group_keys;
    for (size_t g = 0; g < keys.size(); g += size) {
      std::vector<Real> members(keys.begin() + static_cast<ptrdiff_t>(g),
                                keys.begin() + static_cast<ptrdiff_t>(g + size));
      std::sort(members.rbegin(), members.rend());
      const bool sum = c.spec.group_score == GroupScore::kTop2Sum && size > 1;
      group_keys.push_back(members[0] + (sum ? members[1] : 0));
    }
    const auto kept = largest(group_keys, c.spec.topk_groups);
    for (size_t e = 0; e < keys.size(); ++e) {
      if (std::count(kept.begin(), kept.end(), static_cast<int32_t>(e / size)) == 0) {
        keys[e] = -std::numeric_limits<Real>::infinity();
      }
    }
  }
  return largest(keys, c.top_k);
}

std::vector<int32_t> choice(const Case& c, const std::vector<float>& logits,
                            const std::vector<float>& bias) {
  constexpr int32_t kCanary = 77777;
  const Gating gating{.spec = c.spec,
                      .num_experts = c.num_experts,
                      .top_k = c.top_k,
                      .selection_bias = c.biased ? bias.data() : nullptr};
  const auto scratch = std::make_unique<GatingScratch>();
  std::vector<int32_t> ids(static_cast<size_t>(c.top_k) + 1, kCanary);
  select_experts(gating, logits.data(), *scratch, ids.data());
  EXPECT_EQ(ids.back(), kCanary);
  ids.pop_back();
  return ids;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    for (const bool biased : {false, true}) {
      for (const auto& [e, k] : {std::pair{1, 1},
                                 {2, 2},
                                 {8, 2},
                                 {31, 31},
                                 {128, 4},
                                 {257, 8},
                                 {512, 22},
                                 {1024, 32},
                                 {4096, 127}}) {
        all.push_back({{.scoring = scoring}, e, k, biased});
      }
      for (const auto score : {GroupScore::kTop2Sum, GroupScore::kMax}) {
        for (const auto& [e, k, groups, kept] : {std::array{256, 8, 8, 4},
                                                 {160, 6, 8, 3},
                                                 {64, 6, 2, 1},
                                                 {12, 3, 12, 5},
                                                 {128, 16, 8, 1},
                                                 {16, 16, 4, 4}}) {
          all.push_back({{.scoring = scoring,
                          .num_groups = groups,
                          .topk_groups = kept,
                          .group_score = score},
                         e,
                         k,
                         biased});
        }
      }
    }
  }
  return all;
}

TEST(SelectExperts, SortsKeysWithTiesToTheLowerIndex) {
  // Five kinds of expert, so nearly everything ties; no two kinds and no two sums of kinds do.
  constexpr std::array kLogits{-2.0f, -1.25f, 0.0f, 0.75f, 2.5f};
  constexpr std::array kBias{-0.5f, 0.25f, -3.0f, 0.3125f, -1.125f};
  std::mt19937 random(3);
  for (const Case& c : cases()) {
    for (int round = 0; round < 20; ++round) {
      std::vector<float> logits, bias;
      for (int64_t e = 0; e < c.num_experts; ++e) {
        const size_t kind = random() % (round % 5 + 1);
        logits.push_back(kLogits[kind]);
        bias.push_back(kBias[kind]);
      }
      ASSERT_EQ(choice(c, logits, bias), expected_choice(c, logits, bias))
          << "E " << c.num_experts << " K " << c.top_k << " groups " << c.spec.num_groups
          << " scoring " << static_cast<int>(c.spec.scoring) << " biased " << c.biased;
    }
  }
}

TEST(SelectExperts, BadNumbersStillGiveDistinctExperts) {
  constexpr std::array kBad{kNaN, kInf, -kInf, 3e38f, -3e38f, 1e-40f, 0.0f};
  std::mt19937 random(4);
  for (const Case& c : cases()) {
    for (int round = 0; round < 8; ++round) {
      std::vector<float> logits, bias;
      for (int64_t e = 0; e < c.num_experts; ++e) {
        logits.push_back(finite_logit(round == 0 ? kNaN : kBad[random() % kBad.size()]));
        bias.push_back(kBad[random() % kBad.size()]);
      }
      const auto ids = choice(c, logits, bias);
      const std::set<int32_t> distinct(ids.begin(), ids.end());
      ASSERT_EQ(distinct.size(), ids.size());
      ASSERT_GE(*distinct.begin(), 0);
      ASSERT_LT(*distinct.rbegin(), c.num_experts);
    }
  }
}

TEST(SelectExperts, NaNComesLastAndInfinityFirst) {
  const Case c{{.scoring = Scoring::kSigmoid}, 5, 5};
  std::vector<float> logits{kNaN, -5, kInf, 4, -kInf};
  for (auto& logit : logits) logit = finite_logit(logit);
  EXPECT_EQ(choice(c, logits, {}), (std::vector<int32_t>{2, 3, 1, 0, 4}));
  const Case biased{{.scoring = Scoring::kSigmoid}, 4, 4, true};
  EXPECT_EQ(choice(biased, {1, 1, 1, 1}, {kNaN, -kInf, -2, kInf}),
            (std::vector<int32_t>{3, 2, 0, 1}));
}

TEST(SelectExperts, ExpertsOfDroppedGroupsNeverWin) {
  // Every biased score is negative: a mask of 0 would prefer the dropped group.
  const Case c{{.scoring = Scoring::kSigmoid, .num_groups = 2, .topk_groups = 1}, 4, 2, true};
  EXPECT_EQ(choice(c, {0, 0, 1, 1}, {-5, -5, -2, -3}), (std::vector<int32_t>{2, 3}));
}

TEST(SelectExperts, SaturatedScoresAreStillOrderedByTheirLogits) {
  // sigmoid(20) and sigmoid(30) are both 1 in f32, exp(-200) and exp(-150) both 0.
  const Case sigmoid_case{{.scoring = Scoring::kSigmoid}, 3, 2};
  EXPECT_EQ(choice(sigmoid_case, {20, 30, 25}, {}), (std::vector<int32_t>{1, 2}));
  const Case softmax_case{{.scoring = Scoring::kSoftmax}, 3, 3};
  EXPECT_EQ(choice(softmax_case, {-200, -150, 0}, {}), (std::vector<int32_t>{2, 1, 0}));
}

TEST(LaneSum, MatchesAnExactSum) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  for (const int64_t n : {1, 2, 31, 32, 33, 64, 100, 4096}) {
    std::vector<float> values(static_cast<size_t>(n));
    for (auto& v : values) v = uniform(random);
    const double want = std::accumulate(values.begin(), values.end(), 0.0);
    // n / 32 additions in a lane and five between lanes, half a unit each.
    const double bound = want * 0x1p-24 * static_cast<double>(n / 32 + 6);
    EXPECT_NEAR(double{lane_sum(values.data(), n)}, want, bound) << n;
  }
}

TEST(GatingScore, MatchesTheFormulas) {
  for (float x = -170.0f; x < 170.0f; x += 0.037f) {
    const double scores[] = {std::exp(double{x} - 170.0), 1.0 / (1.0 + std::exp(-double{x})),
                             std::sqrt(std::log1p(std::exp(double{x})))};
    for (const auto scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
      const double want = scores[static_cast<int>(scoring)];
      // Softmax: the rounded difference costs half a unit of an argument up to 340.
      const double bound = scoring == Scoring::kSoftmax ? 0x1p-24 * (4 + 170 - double{x}) : 0x1p-22;
      const double cut = scoring == Scoring::kSqrtSoftplus ? 0.0 : 1.7e-38;
      EXPECT_NEAR(double{gating_score(scoring, x, 170.0f)}, want, bound * want + cut) << x;
    }
  }
}

TEST(FirstIdOutside, FindsTheFirst) {
  const std::vector<int32_t> ids{0, 4, 5, -1};
  const std::vector<int64_t> wide{1, int64_t{1} << 32, 2};
  const auto view = TensorView::contiguous(ids.data(), DataType::kI32, {4});
  const auto wide_view = TensorView::contiguous(wide.data(), DataType::kI64, {3});
  EXPECT_EQ(first_id_outside(view, 4, 6), 3);
  EXPECT_EQ(first_id_outside(view, 4, 5), 2);
  EXPECT_EQ(first_id_outside(view, 3, 6), -1);
  EXPECT_EQ(first_id_outside(view, 0, 0), -1);
  EXPECT_EQ(first_id_outside(wide_view, 3, 100), 1);
}

}  // namespace
}  // namespace switchyard
