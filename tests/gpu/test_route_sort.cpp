// What a layer's experts begin with, bit for bit: routing and sorting in one launch against the
// CPU's routing and the reference's sort.

#include <gtest/gtest.h>

#include <string>

#include "core/expert_sort.h"
#include "core/sort_plan.h"
#include "cpu/steps.h"
#include "cuda/route_sort.h"
#include "gpu/device_tensor.h"
#include "reference/steps.h"
#include "support/random.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

struct Case {
  int64_t num_tokens, num_experts, top_k;
  int64_t unit_size = 8;
  RoutingSpec spec{};
  bool selection_bias = false;
  int64_t num_fused_shared = 0;
  int64_t num_routed = -1;  // num_tokens on the device
  DataType type = DataType::kF32;
  double coarse = 0;  // logits are multiples of this: many ties

  int64_t columns() const { return top_k + num_fused_shared; }
  int64_t experts() const { return num_experts + num_fused_shared; }
};

std::string describe(const Case& c) {
  return "T " + std::to_string(c.num_tokens) + " E " + std::to_string(c.num_experts) + " K " +
         std::to_string(c.top_k) + "+" + std::to_string(c.num_fused_shared) + " unit " +
         std::to_string(c.unit_size) + " groups " + std::to_string(c.spec.num_groups) + " n " +
         std::to_string(c.num_routed);
}

Buffer random_logits(Random& random, const Case& c) {
  Buffer logits(c.type, {c.num_tokens, c.num_experts});
  for (int64_t i = 0; i < logits.size(); ++i) {
    double value = 3 * random.normal();
    if (c.coarse > 0) value = std::round(value / c.coarse) * c.coarse;
    logits.set(i, value);
  }
  return logits;
}

/// Everything that a call writes, poisoned.
struct Outputs {
  explicit Outputs(const Case& c)
      : rows(sort_capacity(c.num_tokens, c.columns(), c.experts(), c.unit_size)),
        ids(DataType::kI32, {c.num_tokens, c.columns()}),
        weights(DataType::kF32, {c.num_tokens, c.columns()}),
        sorted_ids(DataType::kI32, {rows}),
        sorted_weights(DataType::kF32, {rows}),
        sorted_expert_ids(DataType::kI32, {rows / c.unit_size}),
        num_valid_ids(DataType::kI32, {2}),
        zeroed(DataType::kI32, {64}),
        m_indices(DataType::kI32, {rows}) {}
  int64_t rows;
  Buffer ids, weights, sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, zeroed,
      m_indices;
};

void run(const Case& c) {
  SCOPED_TRACE(describe(c));
  Random random(static_cast<uint64_t>(c.num_tokens * 977 + c.num_experts));
  const Buffer logits = random_logits(random, c);
  const Buffer bias = Buffer::normal(random, DataType::kF32, {c.num_experts}, 0.1);
  const Buffer num_tokens = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_routed)});
  Outputs want(c);
  ops::RouteArgs route{.router_logits = logits,
                       .num_fused_shared = c.num_fused_shared,
                       .fused_shared_weight = 0.625f,
                       .topk_ids = want.ids,
                       .topk_weights = want.weights};
  if (c.selection_bias) route.selection_bias = bias;
  if (c.num_routed >= 0) route.num_tokens = num_tokens;
  ops::SortArgs sort{.topk_ids = want.ids,
                     .topk_weights = want.weights,
                     .num_experts = c.experts(),
                     .unit_size = c.unit_size,
                     .num_local_tokens = route.num_tokens,
                     .sorted_ids = want.sorted_ids,
                     .sorted_weights = want.sorted_weights,
                     .sorted_expert_ids = want.sorted_expert_ids,
                     .num_valid_ids = want.num_valid_ids,
                     .m_indices = want.m_indices};
  cpu::route(c.spec, route);
  reference::sort(sort);

  // In one launch, with and without a list that few pairs do without, and the sort alone.
  for (const auto& [routes, with_tokens] : {std::pair{true, true}, {true, false}, {false, true}}) {
    SCOPED_TRACE(routes ? "routed and sorted" : "sorted");
    const Outputs poisoned(c);
    const DeviceTensor device_logits(logits), device_bias(route.selection_bias),
        device_count(route.num_tokens), ids(routes ? poisoned.ids : want.ids),
        weights(routes ? poisoned.weights : want.weights), sorted_ids(poisoned.sorted_ids),
        sorted_weights(poisoned.sorted_weights), sorted_expert_ids(poisoned.sorted_expert_ids),
        num_valid_ids(poisoned.num_valid_ids), zeroed(poisoned.zeroed),
        m_indices(poisoned.m_indices);
    RouteRequest request{.spec = c.spec, .args = route};
    request.args.router_logits = device_logits;
    request.args.selection_bias = device_bias;
    request.args.num_tokens = device_count;
    request.args.topk_ids = ids;
    request.args.topk_weights = weights;
    const cuda::SortJob job{
        .topk_ids = ids.view().as<const int32_t>(),
        .topk_weights = weights.view().as<const int32_t>(),
        .tokens = {.limit = c.num_tokens, .on_device = device_count.view().as<const int32_t>()},
        .top_k = static_cast<int32_t>(c.columns()),
        .num_experts = static_cast<int32_t>(c.experts()),
        .unit_size = static_cast<int32_t>(c.unit_size),
        .capacity = static_cast<int32_t>(want.rows),
        .num_blocks = static_cast<int32_t>(want.rows / c.unit_size),
        .num_valid = 2,
        .sorted_ids = sorted_ids.view().as<int32_t>(),
        .sorted_weights = sorted_weights.view().as<int32_t>(),
        .sorted_expert_ids = sorted_expert_ids.view().as<int32_t>(),
        .num_valid_ids = num_valid_ids.view().as<int32_t>(),
        .m_indices = with_tokens ? m_indices.view().as<int32_t>() : nullptr,
        .zeroed = zeroed.view().data,
        .zeroed_bytes = 256};
    cuda::route_and_sort(routes ? &request : nullptr, job, nullptr, 0, {});
    EXPECT_TRUE(same_bits(ids.fetch(), want.ids));
    EXPECT_TRUE(same_bits(weights.fetch(), want.weights));
    EXPECT_TRUE(same_bits(sorted_ids.fetch(), want.sorted_ids));
    EXPECT_TRUE(same_bits(sorted_weights.fetch(), want.sorted_weights));
    EXPECT_TRUE(same_bits(sorted_expert_ids.fetch(), want.sorted_expert_ids));
    EXPECT_TRUE(same_bits(num_valid_ids.fetch(), want.num_valid_ids));
    EXPECT_TRUE(same_bits(zeroed.fetch(), Buffer::zeros(DataType::kI32, {64})));
    if (with_tokens) {
      EXPECT_TRUE(same_bits(m_indices.fetch(), want.m_indices));
    }
  }
}

constexpr RoutingSpec kDeepSeek{.scoring = Scoring::kSigmoid,
                                .renormalize_epsilon = 1e-20f,
                                .num_groups = 8,
                                .topk_groups = 4,
                                .routed_scaling_factor = 2.5f};

TEST(GpuRouteSort, EveryTokenCountAndModel) {
  if (cuda::device_facts(0).capability != 90) GTEST_SKIP() << "for compute capability 9.0";
  for (const int64_t t : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64}) {
    for (const int64_t unit : {1, 8, 32}) {
      run({.num_tokens = t, .num_experts = 256, .top_k = 8, .unit_size = unit});
      run({.num_tokens = t,
           .num_experts = 256,
           .top_k = 8,
           .unit_size = unit,
           .spec = kDeepSeek,
           .selection_bias = true,
           .num_fused_shared = 1});
    }
    for (const auto& [e, k] : {std::pair{1, 1},
                               {8, 2},
                               {16, 1},
                               {31, 31},
                               {32, 4},
                               {128, 4},
                               {129, 5},
                               {384, 6},
                               {512, 10},
                               {896, 16},
                               {1024, 32}}) {
      if (t * k > kSortFewPairs) continue;
      run({.num_tokens = t, .num_experts = e, .top_k = k, .unit_size = 16});
    }
  }
}

TEST(GpuRouteSort, TiesTypesAndDeviceSideTokenCount) {
  if (cuda::device_facts(0).capability != 90) GTEST_SKIP() << "for compute capability 9.0";
  for (const DataType type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
    for (const double coarse : {0.0, 2.0, 100.0}) {
      run({.num_tokens = 50, .num_experts = 256, .top_k = 8, .type = type, .coarse = coarse});
    }
  }
  for (const int64_t t : {1, 16, 64}) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, t - 1, t, t + 3}) {
      run({.num_tokens = t, .num_experts = 64, .top_k = 6, .num_fused_shared = 2, .num_routed = n});
    }
  }
}

TEST(GpuRouteSort, LeavesWhatItCannotRoute) {
  LayerSpec spec{.num_experts = 256, .top_k = 8};
  const int device = 0;
  if (cuda::device_facts(device).capability != 90) GTEST_SKIP() << "for compute capability 9.0";
  EXPECT_TRUE(cuda::can_route_and_sort(spec, 64, device));
  EXPECT_FALSE(cuda::can_route_and_sort(spec, 65, device));
  spec.num_experts = 896;  // where two launches are faster
  EXPECT_TRUE(cuda::can_route_and_sort(spec, 4, device));
  EXPECT_FALSE(cuda::can_route_and_sort(spec, 5, device));
  spec.top_k = 33;
  EXPECT_FALSE(cuda::can_route_and_sort(spec, 1, device));
  spec = {.num_experts = 1025, .top_k = 8};
  EXPECT_FALSE(cuda::can_route_and_sort(spec, 1, device));
  spec = {.num_experts = 1024, .top_k = 8, .num_fused_shared = 1};
  EXPECT_TRUE(cuda::can_route_and_sort(spec, 1, device));
  spec = {.num_experts = 513, .top_k = 11, .num_fused_shared = 1};  // no kernel for 512 and one
  EXPECT_FALSE(cuda::can_route_and_sort(spec, 1, device));
  spec = {.num_experts = 256, .top_k = 8};
  spec.routing.hash = true;
  EXPECT_FALSE(cuda::can_route_and_sort(spec, 1, device));
}

}  // namespace
}  // namespace switchyard
