// Routing methods of production models against their formulas in long double, on poisoned outputs.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "cpu/steps.h"
#include "reference/steps.h"
#include "support/buffer.h"
#include "support/random.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::Random;
using Real = long double;

struct Model {
  const char* name;
  int64_t num_experts, top_k;  // routed ones
  RoutingSpec spec{};
  bool logit_bias = false, selection_bias = false, per_expert_scale = false;
  int64_t num_fused_shared = 0;
};

RoutingSpec sigmoid_routing(int32_t groups, int32_t kept, float scaling) {
  return {.scoring = Scoring::kSigmoid,
          .renormalize_epsilon = 1e-20f,
          .num_groups = groups,
          .topk_groups = kept,
          .routed_scaling_factor = scaling};
}

std::vector<Model> models() {
  const RoutingSpec plain{.renormalize = false};
  const RoutingSpec v4{.scoring = Scoring::kSqrtSoftplus,
                       .renormalize_epsilon = 1e-20f,
                       .routed_scaling_factor = 1.5f};
  const RoutingSpec deepseek_v2{.renormalize = false,
                                .num_groups = 8,
                                .topk_groups = 3,
                                .group_score = GroupScore::kMax,
                                .routed_scaling_factor = 16.0f};
  const RoutingSpec softmax_groups{
      .renormalize_epsilon = 1e-20f, .num_groups = 4, .topk_groups = 2};
  return {
      {.name = "mixtral", .num_experts = 8, .top_k = 2},
      {.name = "qwen3", .num_experts = 128, .top_k = 8},
      {.name = "qwen3_next", .num_experts = 512, .top_k = 10},
      {.name = "softmax_plain", .num_experts = 64, .top_k = 6, .spec = plain},
      {.name = "deepseek_v2", .num_experts = 160, .top_k = 6, .spec = deepseek_v2},
      {.name = "softmax_groups", .num_experts = 64, .top_k = 4, .spec = softmax_groups},
      {.name = "softmax_biased", .num_experts = 64, .top_k = 4, .selection_bias = true},
      {.name = "deepseek_v3",
       .num_experts = 256,
       .top_k = 8,
       .spec = sigmoid_routing(8, 4, 2.5f),
       .selection_bias = true},
      {.name = "deepseek_v3_fused",
       .num_experts = 256,
       .top_k = 8,
       .spec = sigmoid_routing(8, 4, 2.5f),
       .selection_bias = true,
       .num_fused_shared = 1},
      {.name = "kimi_k3",
       .num_experts = 896,
       .top_k = 16,
       .spec = sigmoid_routing(1, 1, 1.0f),
       .selection_bias = true},
      {.name = "minimax",
       .num_experts = 256,
       .top_k = 8,
       .spec = sigmoid_routing(1, 1, 1.0f),
       .selection_bias = true},
      {.name = "nemotron",
       .num_experts = 512,
       .top_k = 22,
       .spec = sigmoid_routing(1, 1, 5.0f),
       .selection_bias = true},
      {.name = "deepseek_v4", .num_experts = 256, .top_k = 6, .spec = v4, .selection_bias = true},
      {.name = "gpt_oss", .num_experts = 128, .top_k = 4, .logit_bias = true},
      {.name = "llama_4",
       .num_experts = 16,
       .top_k = 1,
       .spec = {.scoring = Scoring::kSigmoid, .renormalize = false}},
      {.name = "gemma_4", .num_experts = 128, .top_k = 8, .per_expert_scale = true},
      {.name = "all_chosen", .num_experts = 33, .top_k = 33, .num_fused_shared = 2},
      {.name = "large", .num_experts = 1024, .top_k = 32, .spec = plain},
      {.name = "largest", .num_experts = 4096, .top_k = 126, .spec = v4, .num_fused_shared = 1},
  };
}

/// Inputs and poisoned outputs of one call.
struct Problem {
  Problem(const Model& shape, int64_t tokens, DataType type, uint64_t seed = 1)
      : model(shape), num_tokens(tokens) {
    Random random(seed + static_cast<uint64_t>(model.num_experts));
    const int64_t columns = model.top_k + model.num_fused_shared;
    logits = Buffer::normal(random, type, {tokens, model.num_experts}, 2.0);
    logit_bias = Buffer::normal(random, type, {model.num_experts});
    selection_bias = Buffer::normal(random, DataType::kF32, {model.num_experts}, 0.3);
    per_expert_scale = Buffer::normal(random, DataType::kF32, {model.num_experts});
    ids = Buffer(DataType::kI32, {tokens, columns});
    weights = Buffer(DataType::kF32, {tokens, columns});
    std::fill_n(ids.as<int32_t>(), ids.size(), 0x5a5a5a5a);
    args = {.router_logits = logits,
            .num_fused_shared = model.num_fused_shared,
            .fused_shared_weight = 0.375f,
            .topk_ids = ids,
            .topk_weights = weights};
    if (model.logit_bias) args.logit_bias = logit_bias;
    if (model.selection_bias) args.selection_bias = selection_bias;
    if (model.per_expert_scale) args.per_expert_scale = per_expert_scale;
  }

  int32_t* ids_of(int64_t token) const { return ids.as<int32_t>() + token * ids.view().extent(1); }
  float* weights_of(int64_t token) const {
    return weights.as<float>() + token * ids.view().extent(1);
  }

  /// The f32 logits of a token: what every formula starts from.
  std::vector<Real> token_logits(int64_t token) const {
    std::vector<Real> row;
    for (int64_t e = 0; e < model.num_experts; ++e) {
      auto logit = static_cast<float>(logits.at(token * model.num_experts + e));
      if (model.logit_bias) logit += static_cast<float>(logit_bias.at(e));
      row.push_back(logit);
    }
    return row;
  }

  Model model;
  int64_t num_tokens;
  Buffer logits, logit_bias, selection_bias, per_expert_scale, ids, weights;
  ops::RouteArgs args;
};

std::vector<Real> scores_of(Scoring scoring, const std::vector<Real>& logits) {
  std::vector<Real> scores;
  for (const Real l : logits) {
    scores.push_back(scoring == Scoring::kSoftmax   ? std::exp(l)
                     : scoring == Scoring::kSigmoid ? 1 / (1 + std::exp(-l))
                                                    : std::sqrt(std::log1p(std::exp(l))));
  }
  if (scoring == Scoring::kSoftmax) {
    const Real sum = std::accumulate(scores.begin(), scores.end(), Real{0});
    for (Real& s : scores) s /= sum;
  }
  return scores;
}

struct Choice {
  std::vector<int32_t> ids;
  Real closest =
      std::numeric_limits<Real>::infinity();  // smallest gap between different keys that decided
};

/// The `count` best of (key, id), and how close the decisions were.
Choice best(std::vector<std::pair<Real, int32_t>> keys, int64_t count) {
  std::stable_sort(keys.begin(), keys.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  Choice choice;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    choice.ids.push_back(keys[i].second);
    if (i + 1 < keys.size() && keys[i].first != keys[i + 1].first) {
      choice.closest = std::min(choice.closest, keys[i].first - keys[i + 1].first);
    }
  }
  return choice;
}

Choice expected_choice(const Problem& p, const std::vector<Real>& scores) {
  const Model& m = p.model;
  std::vector<std::pair<Real, int32_t>> keys;
  for (size_t e = 0; e < scores.size(); ++e) {
    const Real bias = m.selection_bias ? Real(p.selection_bias.at(static_cast<int64_t>(e))) : 0;
    keys.emplace_back(scores[e] + bias, static_cast<int32_t>(e));
  }
  if (m.spec.num_groups == 1) return best(keys, m.top_k);

  const auto size = static_cast<int64_t>(keys.size()) / m.spec.num_groups;
  std::vector<std::pair<Real, int32_t>> groups;
  for (int32_t g = 0; g < m.spec.num_groups; ++g) {
    std::vector<Real> members;
    for (int64_t i = 0; i < size; ++i)
      members.push_back(keys[static_cast<size_t>(g * size + i)].first);
    std::sort(members.rbegin(), members.rend());
    groups.emplace_back(members[0] + (m.spec.group_score == GroupScore::kTop2Sum ? members[1] : 0),
                        g);
  }
  const Choice kept = best(groups, m.spec.topk_groups);
  std::erase_if(keys, [&](const auto& key) {
    return std::count(kept.ids.begin(), kept.ids.end(), static_cast<int32_t>(key.second / size)) ==
           0;
  });
  Choice choice = best(keys, m.top_k);
  choice.closest = std::min(choice.closest, kept.closest);
  return choice;
}

/// f32: the exponential and its rounded argument, sums in lanes over E and in order over K, and
/// six more operations, in half units. The reference only rounds at the end.
Real weight_tolerance(const Model& m, bool exact, Real logit_below_max) {
  const auto experts = static_cast<Real>(m.num_experts);
  const Real units = 12 + logit_below_max + experts / 32 + Real(m.top_k);
  return 0x1p-24L * (exact ? 1.01L : units);
}

void check_weights(const Problem& p, int64_t token, bool exact) {
  const Model& m = p.model;
  const std::vector<Real> logits = p.token_logits(token);
  const std::vector<Real> scores = scores_of(m.spec.scoring, logits);
  const Real max = *std::max_element(logits.begin(), logits.end());
  Real divisor = 1;
  if (m.spec.renormalize) {
    divisor = m.spec.renormalize_epsilon;
    for (int64_t k = 0; k < m.top_k; ++k)
      divisor += scores[static_cast<size_t>(p.ids_of(token)[k])];
  }
  for (int64_t k = 0; k < m.top_k; ++k) {
    const int32_t id = p.ids_of(token)[k];
    Real want = scores[static_cast<size_t>(id)] / divisor * Real(m.spec.routed_scaling_factor);
    if (m.per_expert_scale) want *= Real(p.per_expert_scale.at(id));
    const Real bound = weight_tolerance(m, exact, max - logits[static_cast<size_t>(id)]);
    ASSERT_NEAR(double(p.weights_of(token)[k]), double(want), double(bound * std::fabs(want)))
        << "token " << token << " slot " << k << " expert " << id;
  }
}

void expect_no_routing(const Problem& p, int64_t token, int64_t columns) {
  for (int64_t k = 0; k < columns; ++k) {
    EXPECT_EQ(p.ids_of(token)[k], -1);
    EXPECT_EQ(p.weights_of(token)[k], 0.0f);
  }
}

struct Implementation {
  const char* name;
  void (*route)(const RoutingSpec&, const ops::RouteArgs&);
  bool exact;
};

class Route : public testing::TestWithParam<Implementation> {
 protected:
  void route(const Problem& p) { GetParam().route(p.model.spec, p.args); }

  void run(const Model& model, int64_t num_tokens, DataType type) {
    SCOPED_TRACE(testing::Message() << model.name << " T " << num_tokens << " " << to_string(type));
    const Problem p(model, num_tokens, type);
    route(p);
    int64_t num_close = 0;
    for (int64_t t = 0; t < num_tokens; ++t) {
      const Choice want = expected_choice(p, scores_of(model.spec.scoring, p.token_logits(t)));
      const std::vector<int32_t> got(p.ids_of(t), p.ids_of(t) + model.top_k);
      if (got != want.ids) {
        // Only keys closer than their f32 error (three units of scores and biases near 1, twice in
        // a sum) may come in another order.
        ASSERT_LT(want.closest, 0x1p-20L) << "token " << t;
        ASSERT_EQ(std::set<int32_t>(got.begin(), got.end()).size(), got.size());
        ++num_close;
      }
      check_weights(p, t, GetParam().exact);
      for (int64_t k = model.top_k; k < p.ids.view().extent(1); ++k) {
        ASSERT_EQ(p.ids_of(t)[k], model.num_experts + k - model.top_k);
        ASSERT_EQ(p.weights_of(t)[k], 0.375f);
      }
    }
    EXPECT_LE(num_close, num_tokens / 50);
    EXPECT_TRUE(p.ids.canaries_intact());
    EXPECT_TRUE(p.weights.canaries_intact());
  }
};
INSTANTIATE_TEST_SUITE_P(All, Route,
                         testing::Values(Implementation{"reference", reference::route, true},
                                         Implementation{"cpu", cpu::route, false}),
                         [](const auto& suite) { return suite.param.name; });

TEST_P(Route, EveryModelMatchesItsFormula) {
  for (const Model& model : models()) {
    for (const auto type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
      for (const int64_t t : {0, 1, 2, 65}) run(model, t, type);
    }
  }
}

TEST_P(Route, KnownNumbers) {
  // exp(logit) = 4, 1, 3, 2: softmax is 0.4, 0.1, 0.3, 0.2.
  Problem p({.name = "", .num_experts = 4, .top_k = 2}, 1, DataType::kF32);
  const double logits[] = {std::log(4.0), 0.0, std::log(3.0), std::log(2.0)};
  for (int64_t e = 0; e < 4; ++e) p.logits.set(e, logits[e]);
  const auto expect = [&](double first, double second) {
    route(p);
    EXPECT_EQ(p.ids_of(0)[0], 0);
    EXPECT_EQ(p.ids_of(0)[1], 2);
    EXPECT_NEAR(p.weights_of(0)[0], first, 4e-7);
    EXPECT_NEAR(p.weights_of(0)[1], second, 4e-7);
  };
  expect(4.0 / 7.0, 3.0 / 7.0);
  p.model.spec.renormalize_epsilon = 0.1f;
  expect(0.4 / 0.8, 0.3 / 0.8);
  p.model.spec.renormalize_epsilon = 0.0f;
  p.model.spec.renormalize = false;
  expect(0.4, 0.3);
  p.model.spec.routed_scaling_factor = 2.5f;
  expect(1.0, 0.75);
  p.model.spec.scoring = Scoring::kSigmoid;
  expect(2.5 * 4 / 5, 2.5 * 3 / 4);
  p.model.spec.renormalize = true;
  p.model.spec.scoring = Scoring::kSqrtSoftplus;
  const double a = std::sqrt(std::log(5.0)), b = std::sqrt(std::log(4.0));
  expect(2.5 * a / (a + b), 2.5 * b / (a + b));
}

TEST_P(Route, HashLayersTakeExpertsFromTheTable) {
  constexpr int64_t kVocabulary = 50;
  const Model model{.name = "hash",
                    .num_experts = 64,
                    .top_k = 6,
                    .spec = {.scoring = Scoring::kSqrtSoftplus,
                             .renormalize_epsilon = 1e-20f,
                             .routed_scaling_factor = 1.5f,
                             .hash = true},
                    .num_fused_shared = 1};
  for (const auto type : {DataType::kI32, DataType::kI64}) {
    Problem p(model, 40, DataType::kBf16);
    Random random(9);
    Buffer table(type, {kVocabulary, model.top_k});
    for (int64_t i = 0; i < table.size(); ++i) {
      table.set(i, static_cast<double>((i / model.top_k * 7 + i % model.top_k * 11) % 64));
    }
    Buffer input_ids(type, {p.num_tokens});
    for (int64_t t = 0; t < p.num_tokens; ++t)
      input_ids.set(t, static_cast<double>(random.below(kVocabulary)));
    p.args.tid2eid = table;
    p.args.input_ids = input_ids;
    route(p);
    for (int64_t t = 0; t < p.num_tokens; ++t) {
      for (int64_t k = 0; k < model.top_k; ++k) {
        const auto row = static_cast<int64_t>(input_ids.at(t));
        ASSERT_EQ(p.ids_of(t)[k], static_cast<int32_t>(table.at(row * model.top_k + k)));
      }
      check_weights(p, t, GetParam().exact);
      ASSERT_EQ(p.ids_of(t)[model.top_k], 64);
    }
    // Where validation could not look, a bad id routes nowhere.
    input_ids.set(3, kVocabulary);
    input_ids.set(4, -1);
    route(p);
    for (const int64_t t : {3, 4}) {
      expect_no_routing(p, t, model.top_k);
      EXPECT_EQ(p.ids_of(t)[model.top_k], 64);
    }
  }
}

TEST_P(Route, TokensPastTheCountRouteNowhere) {
  for (const int32_t n : {0, 3, 7, 9}) {
    Problem p({.name = "count", .num_experts = 16, .top_k = 4, .num_fused_shared = 1}, 7,
              DataType::kF32);
    const Problem all({.name = "all", .num_experts = 16, .top_k = 4, .num_fused_shared = 1}, 7,
                      DataType::kF32);
    const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(n)});
    p.args.num_tokens = count;
    route(p);
    route(all);
    for (int64_t t = 0; t < 7; ++t) {
      if (t >= n) {
        expect_no_routing(p, t, 5);
      } else {
        EXPECT_TRUE(std::equal(p.ids_of(t), p.ids_of(t) + 5, all.ids_of(t)));
        EXPECT_TRUE(std::equal(p.weights_of(t), p.weights_of(t) + 5, all.weights_of(t)));
      }
    }
  }
}

/// Rows of nothing but hostile numbers, one kind after the other and mixed.
void spoil(Problem& p) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const double bad[] = {std::nan(""), kInf, -kInf, 3e38, -3e38, 1e-40, -300.0, 0.0};
  Random random(5);
  for (int64_t i = 0; i < p.logits.size(); ++i) {
    const int64_t token = i / p.model.num_experts;
    p.logits.set(i, bad[token < 8 ? token : random.below(8)]);
  }
}

TEST_P(Route, HostileLogitsStillRouteToDistinctExperts) {
  for (const Model& model : models()) {
    for (const auto type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
      SCOPED_TRACE(model.name);
      Problem p(model, 40, type);
      spoil(p);
      route(p);
      for (int64_t t = 0; t < p.num_tokens; ++t) {
        const std::set<int32_t> distinct(p.ids_of(t), p.ids_of(t) + p.ids.view().extent(1));
        ASSERT_EQ(static_cast<int64_t>(distinct.size()), p.ids.view().extent(1)) << "token " << t;
        ASSERT_GE(*distinct.begin(), 0);
        ASSERT_LT(*distinct.rbegin(), model.num_experts + model.num_fused_shared);
        for (int64_t k = 0; k < p.ids.view().extent(1); ++k) {
          ASSERT_TRUE(std::isfinite(p.weights_of(t)[k])) << "token " << t << " slot " << k;
        }
      }
    }
  }
}

TEST(RouteCpu, ChoosesAsTheReferenceDoesAndWeighsAlike) {
  for (const Model& model : models()) {
    for (const bool hostile : {false, true}) {
      SCOPED_TRACE(testing::Message() << model.name << (hostile ? " hostile" : ""));
      Problem cpu(model, 200, DataType::kBf16, 7);
      Problem reference(model, 200, DataType::kBf16, 7);
      if (hostile) {
        spoil(cpu);
        spoil(reference);
      }
      cpu::route(model.spec, cpu.args);
      reference::route(model.spec, reference.args);
      ASSERT_TRUE(test::same_bits(cpu.ids, reference.ids));
      // Arguments of exponentials that still count are above -87.
      const auto relative = static_cast<double>(weight_tolerance(model, false, 87));
      for (int64_t i = 0; i < cpu.weights.size(); ++i) {
        const double want = reference.weights.at(i);
        ASSERT_NEAR(cpu.weights.at(i), want, relative * std::fabs(want) + 1e-30) << "pair " << i;
      }
    }
  }
}

TEST(RouteCpu, ATokenDoesNotDependOnItsBatch) {
  for (const Model& model : models()) {
    const Problem batch(model, 700, DataType::kF32);
    cpu::route(model.spec, batch.args);
    const int64_t columns = batch.ids.view().extent(1);
    for (const int64_t t : {0, 1, 350, 699}) {
      Problem alone(model, 1, DataType::kF32, 99);
      alone.args.router_logits = TensorView::contiguous(
          batch.logits.as<float>() + t * model.num_experts, DataType::kF32, {1, model.num_experts});
      alone.args.selection_bias = batch.args.selection_bias;
      alone.args.logit_bias = batch.args.logit_bias;
      alone.args.per_expert_scale = batch.args.per_expert_scale;
      cpu::route(model.spec, alone.args);
      for (int64_t k = 0; k < columns; ++k) {
        ASSERT_EQ(alone.ids_of(0)[k], batch.ids_of(t)[k]) << model.name;
        ASSERT_EQ(alone.weights_of(0)[k], batch.weights_of(t)[k]) << model.name;
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
