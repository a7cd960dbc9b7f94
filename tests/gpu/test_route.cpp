// Routing on the GPU gives the CPU's bits: ids and weights of every method, size and logit type.

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "cpu/steps.h"
#include "gpu/device_tensor.h"
#include "support/random.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

struct Case {
  RoutingSpec spec{};
  int64_t num_tokens, num_experts, top_k;
  DataType type = DataType::kF32;
  bool logit_bias = false, selection_bias = false, per_expert_scale = false;
  int64_t num_fused_shared = 0;
  int64_t num_routed = -1;  // num_tokens on the device
  double coarse = 0;        // logits are multiples of this: many ties
  bool wild = false;        // some logits are NaN or infinite
};

std::string describe(const Case& c) {
  return std::string(to_string(c.spec.scoring)) + " groups " + std::to_string(c.spec.num_groups) +
         " T " + std::to_string(c.num_tokens) + " E " + std::to_string(c.num_experts) + " K " +
         std::to_string(c.top_k) + " bias " + std::to_string(c.selection_bias) + " " +
         to_string(c.type);
}

Buffer random_logits(Random& random, const Case& c) {
  const float special[] = {std::numeric_limits<float>::quiet_NaN(),
                           std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity(), 3e38f, -3e38f};
  Buffer logits(c.type, {c.num_tokens, c.num_experts});
  for (int64_t i = 0; i < logits.size(); ++i) {
    double value = 3 * random.normal();
    if (c.coarse > 0) value = std::round(value / c.coarse) * c.coarse;
    if (c.wild && random.below(4) == 0) value = static_cast<double>(special[random.below(5)]);
    logits.set(i, value);
  }
  return logits;
}

void run(const Case& c) {
  SCOPED_TRACE(describe(c));
  Random random(static_cast<uint64_t>(c.num_tokens * 977 + c.num_experts));
  const Buffer logits = random_logits(random, c);
  ops::RouteArgs args{.router_logits = logits,
                      .num_fused_shared = c.num_fused_shared,
                      .fused_shared_weight = 0.625f};
  const Buffer logit_bias = Buffer::normal(random, DataType::kBf16, {c.num_experts});
  const Buffer selection_bias = Buffer::normal(random, DataType::kF32, {c.num_experts}, 0.1);
  const Buffer scale = Buffer::normal(random, DataType::kF32, {c.num_experts});
  const Buffer num_tokens = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_routed)});
  const int64_t columns = c.top_k + c.num_fused_shared;
  Buffer ids(DataType::kI32, {c.num_tokens, columns});
  Buffer weights(DataType::kF32, {c.num_tokens, columns});
  if (c.logit_bias) args.logit_bias = logit_bias;
  if (c.selection_bias) args.selection_bias = selection_bias;
  if (c.per_expert_scale) args.per_expert_scale = scale;
  if (c.num_routed >= 0) args.num_tokens = num_tokens;
  args.topk_ids = ids;
  args.topk_weights = weights;

  ops::RouteArgs on_device = args;
  std::vector<DeviceTensor> tensors;
  for (TensorView* view : {&on_device.router_logits, &on_device.logit_bias,
                           &on_device.selection_bias, &on_device.per_expert_scale,
                           &on_device.num_tokens, &on_device.topk_ids, &on_device.topk_weights}) {
    tensors.emplace_back(*view);
    *view = tensors.back().view();
  }
  cpu::route(c.spec, args);
  test::gpu().route({.spec = c.spec, .args = on_device}, test::on_gpu());
  const Buffer got_ids = tensors[5].fetch();
  const Buffer got_weights = tensors[6].fetch();
  for (int64_t i = 0; i < ids.size(); ++i) {
    ASSERT_EQ(got_ids.as<int32_t>()[i], ids.as<int32_t>()[i])
        << "token " << i / columns << " slot " << i % columns;
    ASSERT_EQ(got_weights.as<uint32_t>()[i], weights.as<uint32_t>()[i])
        << "token " << i / columns << " slot " << i % columns << ": " << got_weights.as<float>()[i]
        << " instead of " << weights.as<float>()[i];
  }
}

TEST(GpuRoute, EveryScoringAndSize) {
  for (const auto scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    for (const bool renormalize : {false, true}) {
      for (const bool biased : {false, true}) {
        for (const auto& [e, k] : {std::pair{1, 1},
                                   {2, 2},
                                   {8, 2},
                                   {31, 31},
                                   {128, 4},
                                   {129, 5},
                                   {256, 8},
                                   {257, 8},
                                   {512, 22},
                                   {1024, 32},
                                   {1025, 33},
                                   {4096, 127}}) {
          run({.spec = {.scoring = scoring,
                        .renormalize = renormalize,
                        .renormalize_epsilon = biased ? 1e-20f : 0.0f,
                        .routed_scaling_factor = 2.5f},
               .num_tokens = 37,
               .num_experts = e,
               .top_k = k,
               .selection_bias = biased});
        }
      }
    }
  }
}

/// Selection biases choose, so that weights show the score of any logit, of every exponent.
TEST(GpuRoute, ScoresHaveTheHostsBits) {
  constexpr int64_t kTokens = 4096, kTopK = 32;
  for (const auto scoring : {Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    for (const int64_t experts : {256, 384, 896}) {
      SCOPED_TRACE(std::string(to_string(scoring)) + " E " + std::to_string(experts));
      Random random(19);
      Buffer logits(DataType::kF32, {kTokens, experts});
      for (int64_t i = 0; i < logits.size(); ++i) {
        if (i % 2 == 0) {
          logits.set(i, 40 * random.normal());
        } else {
          const auto bits = static_cast<uint32_t>(random.below(int64_t{1} << 32));
          logits.as<uint32_t>()[i] = bits;
        }
      }
      Buffer bias(DataType::kF32, {experts});
      for (int64_t e = 0; e < experts; ++e) bias.set(e, e % 7 == 3 ? 1e30 + 1e25 * double(e) : 0.0);
      Buffer ids(DataType::kI32, {kTokens, kTopK});
      Buffer weights(DataType::kF32, {kTokens, kTopK});
      ops::RouteArgs args{.router_logits = logits,
                          .selection_bias = bias,
                          .topk_ids = ids,
                          .topk_weights = weights};
      const RoutingSpec spec{.scoring = scoring, .renormalize = false};
      const DeviceTensor on_gpu[] = {DeviceTensor(logits), DeviceTensor(bias), DeviceTensor(ids),
                                     DeviceTensor(weights)};
      const ops::RouteArgs on_device{.router_logits = on_gpu[0],
                                     .selection_bias = on_gpu[1],
                                     .topk_ids = on_gpu[2],
                                     .topk_weights = on_gpu[3]};
      cpu::route(spec, args);
      test::gpu().route({.spec = spec, .args = on_device}, test::on_gpu());
      EXPECT_TRUE(same_bits(on_gpu[2].fetch(), ids));
      EXPECT_TRUE(same_bits(on_gpu[3].fetch(), weights));
    }
  }
}

TEST(GpuRoute, Groups) {
  for (const auto score : {GroupScore::kTop2Sum, GroupScore::kMax}) {
    for (const bool biased : {false, true}) {
      for (const auto& [e, k, groups, kept] : {std::array{256, 8, 8, 4},
                                               {160, 6, 8, 3},
                                               {64, 6, 2, 1},
                                               {12, 3, 12, 5},
                                               {128, 16, 8, 1},
                                               {384, 8, 4, 2},
                                               {1024, 8, 64, 9}}) {
        run({.spec = {.scoring = Scoring::kSigmoid,
                      .num_groups = groups,
                      .topk_groups = kept,
                      .group_score = score},
             .num_tokens = 65,
             .num_experts = e,
             .top_k = k,
             .selection_bias = biased,
             .coarse = 0.5});
      }
    }
  }
}

TEST(GpuRoute, TiesSpecialValuesAndTypes) {
  for (const auto type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
    for (const bool wild : {false, true}) {
      for (const auto scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
        run({.spec = {.scoring = scoring},
             .num_tokens = 130,
             .num_experts = 256,
             .top_k = 8,
             .type = type,
             .logit_bias = true,
             .selection_bias = wild,
             .per_expert_scale = true,
             .num_fused_shared = 2,
             .coarse = 1.0,
             .wild = wild});
      }
    }
  }
}

TEST(GpuRoute, DeviceSideTokenCountAndLargeBatch) {
  for (const int64_t n : {0, 1, 99, 100}) {
    run({.num_tokens = 100, .num_experts = 64, .top_k = 6, .num_fused_shared = 1, .num_routed = n});
  }
  run({.num_tokens = 0, .num_experts = 64, .top_k = 6});
  run({.num_tokens = 16384, .num_experts = 256, .top_k = 8});
}

TEST(GpuRoute, HashLayers) {
  Random random(3);
  constexpr int64_t kTokens = 70, kVocab = 50, kExperts = 64, kTopK = 6;
  const Buffer logits = Buffer::normal(random, DataType::kBf16, {kTokens, kExperts});
  Buffer table(DataType::kI64, {kVocab, kTopK});
  for (int64_t v = 0; v < kVocab; ++v) {
    for (int64_t k = 0; k < kTopK; ++k) table.as<int64_t>()[v * kTopK + k] = (v * 7 + k * 11) % 64;
  }
  table.as<int64_t>()[3 * kTopK + 2] = 64;  // one bad row, and bad input ids below
  for (const DataType type : {DataType::kI32, DataType::kI64}) {
    Buffer input(type, {kTokens});
    for (int64_t t = 0; t < kTokens; ++t) {
      input.set(t, t == 5 ? -1.0 : t == 6 ? 50.0 : static_cast<double>(random.below(kVocab)));
    }
    Buffer ids(DataType::kI32, {kTokens, kTopK + 1});
    Buffer weights(DataType::kF32, {kTokens, kTopK + 1});
    ops::RouteArgs args{.router_logits = logits,
                        .input_ids = input,
                        .tid2eid = table,
                        .num_fused_shared = 1,
                        .topk_ids = ids,
                        .topk_weights = weights};
    const DeviceTensor device[] = {DeviceTensor(logits), DeviceTensor(input), DeviceTensor(table),
                                   DeviceTensor(ids), DeviceTensor(weights)};
    ops::RouteArgs on_device = args;
    on_device.router_logits = device[0];
    on_device.input_ids = device[1];
    on_device.tid2eid = device[2];
    on_device.topk_ids = device[3];
    on_device.topk_weights = device[4];
    const RoutingSpec spec{.scoring = Scoring::kSqrtSoftplus, .hash = true};
    cpu::route(spec, args);
    test::gpu().route({.spec = spec, .args = on_device}, test::on_gpu());
    EXPECT_TRUE(same_bits(device[3].fetch(), ids));
    EXPECT_TRUE(same_bits(device[4].fetch(), weights));
  }
}

}  // namespace
}  // namespace switchyard
