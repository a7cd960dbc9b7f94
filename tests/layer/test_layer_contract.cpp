// What Layer promises besides the numbers: empty and lopsided batches, device-side token counts,
// batch invariance, no allocation, concurrent calls, and what create does with its source.

#include <gtest/gtest.h>

#include <atomic>
#include <climits>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "support/allocations.h"
#include "support/compare.h"
#include "support/layer_cases.h"
#include "support/naive_layer.h"
#include "support/run_layer.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::GuardedMemory;
using test::LayerCase;
using test::LayerRun;
using test::Random;
using test::RandomWeights;

/// Cases that between them use every step of forward.
const char* const kEveryStep[] = {"shared_gated",     "kimi_k3_like",   "gpt_oss_like",
                                  "deepseek_v3_like", "gemma_4_like",   "hash_routing",
                                  "shared_fused",     "weight_on_input"};

class LayerContract : public testing::TestWithParam<BackendKind> {
 protected:
  Layer make(const LayerCase& c, const RandomWeights& weights) {
    return Layer::create(c.spec, weights.weights(), {.backend = GetParam()});
  }
  static Buffer hidden_states(const LayerCase& c, int64_t num_tokens,
                              DataType type = DataType::kBf16) {
    Random random(11);
    return Buffer::normal(random, type, {num_tokens, c.spec.hidden_size});
  }
  static Buffer input_ids(int64_t num_tokens) {
    Random random(12);
    return test::random_input_ids(random, num_tokens, 64);
  }
};

TEST_P(LayerContract, EmptyBatchNeedsNoMemoryAtAll) {
  const LayerCase& c = test::layer_case("shared_gated");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer = make(c, weights);
  EXPECT_EQ(layer.workspace_bytes(0), 0);
  layer.forward({.hidden_states = TensorView::contiguous(static_cast<void*>(nullptr),
                                                         DataType::kBf16, {0, c.spec.hidden_size}),
                 .output = TensorView::contiguous(static_cast<void*>(nullptr), DataType::kBf16,
                                                  {0, c.spec.hidden_size})},
                {});
}

TEST_P(LayerContract, TokensBeyondNumTokensAreLeftAlone) {
  for (const char* name : kEveryStep) {
    const LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    const Layer layer = make(c, weights);
    const Buffer hidden = hidden_states(c, 12);
    const Buffer ids = input_ids(12);
    const LayerRun all = test::run_layer(layer, hidden, {.input_ids = ids});
    for (int32_t n : {0, 1, 7, 12}) {
      Buffer count(DataType::kI32, {1});
      count.set(0, n);
      const LayerRun part = test::run_layer(layer, hidden, {.input_ids = ids, .num_tokens = count});
      const int64_t computed = n * c.spec.hidden_size;
      EXPECT_EQ(std::memcmp(part.output.view().data, all.output.view().data,
                            static_cast<size_t>(2 * computed)),
                0)
          << name << ", num_tokens " << n;
      EXPECT_TRUE(part.output.untouched(computed, part.output.size())) << name << ", n " << n;
    }
  }
}

TEST_P(LayerContract, ATokenDoesNotSeeItsBatch) {
  for (const char* name : kEveryStep) {
    const LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    const Layer layer = make(c, weights);
    constexpr int64_t kTokens = 70;
    const Buffer hidden = hidden_states(c, kTokens);
    const Buffer ids = input_ids(kTokens);
    const LayerRun all = test::run_layer(layer, hidden, {.input_ids = ids});
    const int64_t row_bytes = 2 * c.spec.hidden_size;
    for (int64_t size : {1, 2, 5, 33}) {
      for (int64_t first = 0; first + size <= kTokens; first += 23) {
        const TensorView part =
            TensorView::contiguous(hidden.as<uint16_t>() + first * c.spec.hidden_size,
                                   DataType::kBf16, {size, c.spec.hidden_size});
        const LayerRun run =
            test::run_layer(layer, part,
                            {.input_ids = TensorView::contiguous(ids.as<int64_t>() + first,
                                                                 DataType::kI64, {size})});
        EXPECT_EQ(std::memcmp(run.output.view().data, all.output.as<uint8_t>() + first * row_bytes,
                              static_cast<size_t>(size * row_bytes)),
                  0)
            << name << ", tokens " << first << " to " << first + size;
      }
    }
  }
}

TEST_P(LayerContract, LopsidedAndSkippedRouting) {
  for (const char* name : {"mxfp4", "bf16", "shared_plain", "weight_on_input"}) {
    const LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    const Layer layer = make(c, weights);
    constexpr int64_t kTokens = 40;
    const Buffer hidden = hidden_states(c, kTokens, DataType::kF32);
    Random random(5);
    const Buffer topk_weights = test::random_topk_weights(random, kTokens, c.spec.top_k);
    const auto check = [&](const char* what, const Buffer& ids) {
      const LayerRun run =
          test::run_layer(layer, hidden, {.topk_ids = ids, .topk_weights = topk_weights});
      const Buffer truth =
          test::naive_forward(c.spec, weights.weights(), hidden, ids, topk_weights);
      EXPECT_TRUE(test::within(run.output, truth,
                               error_bound(c.spec, layer.backend(), DataType::kF32), ids))
          << name << ", " << what;
    };
    const auto filled = [&](auto id_of) {
      Buffer ids(DataType::kI32, {kTokens, c.spec.top_k});
      for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t k = 0; k < c.spec.top_k; ++k) ids.set(t * c.spec.top_k + k, id_of(t, k));
      return ids;
    };
    const auto last = static_cast<double>(c.spec.num_experts - 1);
    const auto count = static_cast<double>(c.spec.num_experts);
    check("all tokens on the same experts",
          filled([&](int64_t, int64_t k) { return last - static_cast<double>(k); }));
    check("only the first experts",
          filled([](int64_t, int64_t k) { return static_cast<double>(k); }));
    check("every second choice skipped",
          filled([&](int64_t t, int64_t k) { return k == t % 2 ? -1.0 : last; }));
    check("ids out of range", filled([&](int64_t t, int64_t k) {
            return k == 0       ? last
                   : t % 3 == 0 ? count
                   : t % 3 == 1 ? double{INT_MAX}
                                : double{INT_MIN};
          }));
    check("every pair skipped", filled([&](int64_t, int64_t) { return -1.0; }));
  }
}

TEST_P(LayerContract, FusedSharedExpertsFillTheLastSlots) {
  const LayerCase& c = test::layer_case("shared_fused");
  const RandomWeights weights(c.spec, c.weights);
  const LayerRun run = test::run_layer(make(c, weights), hidden_states(c, 20));
  for (int64_t t = 0; t < 20; ++t) {
    EXPECT_EQ(run.topk_ids.at(t * 3 + 2), 6);
    EXPECT_FLOAT_EQ(static_cast<float>(run.topk_weights.at(t * 3 + 2)), 0.4f);
    for (int64_t k = 0; k < 2; ++k) EXPECT_LT(run.topk_ids.at(t * 3 + k), 6);
  }
}

TEST_P(LayerContract, RoutingInputsInTheirOrderOfPrecedence) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer = make(c, weights);
  const Buffer hidden = hidden_states(c, 6);
  Random random(4);
  const Buffer logits = Buffer::normal(random, DataType::kF32, {6, c.spec.num_experts});
  const LayerRun by_logits = test::run_layer(layer, hidden, {.router_logits = logits});
  const LayerRun by_router = test::run_layer(layer, hidden);
  EXPECT_FALSE(test::same_bits(by_logits.topk_ids, by_router.topk_ids));
  const LayerRun by_ids = test::run_layer(
      layer, hidden, {.topk_ids = by_logits.topk_ids, .topk_weights = by_logits.topk_weights});
  EXPECT_TRUE(test::same_bits(by_ids.output, by_logits.output));
  const LayerRun both = test::run_layer(layer, hidden,
                                        {.topk_ids = by_router.topk_ids,
                                         .topk_weights = by_router.topk_weights,
                                         .router_logits = logits});
  EXPECT_TRUE(test::same_bits(both.output, by_router.output));
}

TEST_P(LayerContract, LayerWithoutRouterTakesLogitsOrIds) {
  LayerCase c = test::layer_case("gpt_oss_like");
  const RandomWeights with(c.spec, c.weights);
  Weights without = with.weights();
  without.router.projection = {};
  const Layer layer = Layer::create(c.spec, without, {.backend = GetParam()});
  const Buffer hidden = hidden_states(c, 6, DataType::kF32);
  const Buffer exact = test::naive_logits(with.weights(), hidden);
  Buffer logits(DataType::kF32, {6, c.spec.num_experts});
  for (int64_t i = 0; i < logits.size(); ++i) logits.set(i, exact.at(i));
  // The layer adds logit_bias to logits wherever they come from.
  const LayerRun run = test::run_layer(layer, hidden, {.router_logits = logits});
  const LayerRun own = test::run_layer(make(c, with), hidden);
  EXPECT_TRUE(test::same_bits(run.topk_ids, own.topk_ids));
}

TEST_P(LayerContract, ForwardNeverAllocates) {
  for (const char* name : kEveryStep) {
    const LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    const Layer layer = make(c, weights);
    const Buffer hidden = hidden_states(c, 40);
    const Buffer ids = input_ids(40);
    const Buffer output(DataType::kBf16, {40, c.spec.hidden_size});
    const GuardedMemory workspace(layer.workspace_bytes(40));
    ForwardArgs args{.hidden_states = hidden, .output = output, .input_ids = ids};
    const LayerRun routed = test::run_layer(layer, hidden, args);
    if (GetParam() == BackendKind::kReference) {  // its router is written with vectors
      args.topk_ids = routed.topk_ids;
      args.topk_weights = routed.topk_weights;
    }
    for (int call = 0; call < 2; ++call) {
      const int64_t before = test::num_allocations();
      layer.forward(args, workspace.workspace());
      EXPECT_EQ(test::num_allocations() - before, 0) << name << ", call " << call;
    }
  }
}

TEST_P(LayerContract, SeveralThreadsMayCallForwardAtOnce) {
  const LayerCase& c = test::layer_case("kimi_k3_like");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer = make(c, weights);
  const Buffer hidden = hidden_states(c, 21);
  const LayerRun alone = test::run_layer(layer, hidden);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 8; ++repeat) {
        const LayerRun run = test::run_layer(layer, hidden);
        if (!test::same_bits(run.output, alone.output)) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST_P(LayerContract, WorkspaceForMoreTokensServesFewer) {
  for (const LayerCase& c : test::layer_cases()) {
    const RandomWeights weights(c.spec, c.weights);
    const Layer layer = make(c, weights);
    int64_t before = 0;
    for (int64_t tokens : {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 1000, 5000}) {
      const int64_t bytes = layer.workspace_bytes(tokens);
      EXPECT_GE(bytes, before) << c.name << ", " << tokens << " tokens";
      before = bytes;
    }
  }
}

TEST_P(LayerContract, WeightsMayDieAfterCreate) {
  for (const char* name : kEveryStep) {
    const LayerCase& c = test::layer_case(name);
    auto weights = std::make_unique<RandomWeights>(c.spec, c.weights);
    const Layer layer = make(c, *weights);
    const Buffer hidden = hidden_states(c, 9);
    const Buffer ids = input_ids(9);
    const LayerRun before = test::run_layer(layer, hidden, {.input_ids = ids});
    weights.reset();
    const LayerRun after = test::run_layer(layer, hidden, {.input_ids = ids});
    EXPECT_TRUE(test::same_bits(before.output, after.output)) << name;
  }
}

TEST_P(LayerContract, MovedLayerWorks) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  Layer first = make(c, weights);
  const Buffer hidden = hidden_states(c, 3);
  const LayerRun before = test::run_layer(first, hidden);
  Layer second = make(test::layer_case("tiny"), RandomWeights(test::layer_case("tiny").spec, {}));
  second = std::move(first);
  EXPECT_EQ(second.spec(), c.spec);
  EXPECT_TRUE(test::same_bits(test::run_layer(second, hidden).output, before.output));
}

TEST_P(LayerContract, EveryExpertIsLoadedReleasedAndReportedOnce) {
  const LayerCase& c = test::layer_case("shared_plain");
  const RandomWeights weights(c.spec, c.weights);
  std::vector<std::atomic<int>> loads(6), releases(6);
  std::vector<std::pair<int64_t, int64_t>> progress;
  Weights counted_weights = weights.weights();
  counted_weights.experts.load = [&](int64_t e) {
    ++loads.at(static_cast<size_t>(e));
    EXPECT_EQ(releases.at(static_cast<size_t>(e)).load(), 0) << "loaded after its release";
    return weights.expert(e);
  };
  counted_weights.experts.release = [&](int64_t e) { ++releases.at(static_cast<size_t>(e)); };
  const std::thread::id here = std::this_thread::get_id();
  const Layer layer =
      Layer::create(c.spec, counted_weights,
                    {.backend = GetParam(), .on_progress = [&](int64_t done, int64_t total) {
                       EXPECT_EQ(std::this_thread::get_id(), here);
                       progress.emplace_back(done, total);
                     }});
  for (size_t e = 0; e < 6; ++e) {
    EXPECT_EQ(loads[e].load(), 1);
    EXPECT_EQ(releases[e].load(), 1);
  }
  ASSERT_FALSE(progress.empty());
  EXPECT_EQ(progress.back(), (std::pair<int64_t, int64_t>{6, 6}));
  for (size_t i = 1; i < progress.size(); ++i) EXPECT_GT(progress[i].first, progress[i - 1].first);
  EXPECT_GT(layer.packed_bytes(), 0);
}

TEST_P(LayerContract, AFailingSourcePassesItsErrorOn) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  Weights failing = weights.weights();
  failing.experts.load = [&](int64_t e) {
    if (e == 4) throw Error(ErrorCode::kInvalidFile, "shard 2 is truncated");
    return weights.expert(e);
  };
  try {
    Layer::create(c.spec, failing, {.backend = GetParam()});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidFile);
    EXPECT_STREQ(error.what(), "shard 2 is truncated");
  }
}

TEST_P(LayerContract, PlanSaysWhatForwardDoes) {
  const LayerCase& c = test::layer_case("kimi_k3_like");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer = make(c, weights);
  const Plan plan = layer.plan(16, {.read_gbps = 30, .f32_gflops = 300, .int8_gops = 1000});
  EXPECT_EQ(plan.backend, GetParam());
  EXPECT_EQ(plan.num_tokens, 16);
  EXPECT_EQ(plan.workspace_bytes, layer.workspace_bytes(16));
  EXPECT_NEAR(plan.expected_distinct_experts, 6 * (1 - std::pow(4.0 / 6, 16)), 1e-9);
  EXPECT_GT(plan.predicted_us(), 0);
  const std::string text = plan.explain();
  for (const char* word : {"router", "route", "shared ", "latent down", "latent up", "16 tokens"})
    EXPECT_NE(text.find(word), std::string::npos) << word << " is missing in\n" << text;
  double total = 0;
  for (const PlanStep& step : plan.steps) total += step.predicted_us;
  EXPECT_DOUBLE_EQ(plan.predicted_us(), total);
  EXPECT_EQ(layer.plan(16).predicted_us(), 0) << "no limits, no prediction";
  EXPECT_TRUE(layer.plan(0).steps.empty());
}

INSTANTIATE_TEST_SUITE_P(Backends, LayerContract, testing::ValuesIn(test::available_backends()),
                         [](const auto& kind) { return std::string(to_string(kind.param)); });

TEST(LayerBackend, AutoTakesTheFirstThatRunsAndSaysWhyNotTheOthers) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const Layer layer = Layer::create(c.spec, weights.weights());
  EXPECT_NE(layer.backend(), BackendKind::kAuto);
  EXPECT_NE(layer.backend(), BackendKind::kReference) << "the oracle is never chosen";
  const Plan plan = layer.plan(1);
  if (layer.backend() == BackendKind::kCpu) {
    ASSERT_EQ(plan.rejected.size(), 1u);
    EXPECT_EQ(plan.rejected[0].substr(0, 6), "cuda: ");
    EXPECT_NE(plan.explain().find("not taken:\n  cuda: "), std::string::npos);
  }
}

TEST(LayerBackend, AnUnavailableBackendIsATypedError) {
  const LayerCase& c = test::layer_case("bf16");
  const std::string why = why_unsupported(c.spec, BackendKind::kCuda);
  if (why.empty()) return;  // this machine has a GPU
  const RandomWeights weights(c.spec, c.weights);
  try {
    Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kCuda});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_EQ(error.what(), why);
    EXPECT_EQ(why.substr(0, 17), "backend is cuda; ");
  }
}

}  // namespace
}  // namespace switchyard
