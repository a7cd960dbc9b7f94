// The steps as separate calls give what the whole layer gives: route, sort, gate_up, down and
// combine in a row, and dense, on every backend; stacked tensors give the same experts.

#include <gtest/gtest.h>

#include "core/matrix_slice.h"
#include "core/weight_matrix.h"
#include "support/compare.h"
#include "support/layer_cases.h"
#include "support/naive_layer.h"
#include "support/run_layer.h"
#include "switchyard/ops.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::GuardedMemory;
using test::LayerCase;
using test::Random;
using test::RandomWeights;

/// sort's outputs for a routing.
struct Sorted {
  Sorted(const Buffer& topk_ids, const Buffer& topk_weights, int64_t num_experts, int64_t unit)
      : capacity(ops::sort_capacity(topk_ids.view().extent(0), topk_ids.view().extent(1),
                                    num_experts, unit)),
        ids(DataType::kI32, {capacity}),
        weights(DataType::kF32, {capacity}),
        expert_ids(DataType::kI32, {capacity / unit}),
        valid(DataType::kI32, {2}) {
    ops::sort({.topk_ids = topk_ids,
               .topk_weights = topk_weights,
               .num_experts = num_experts,
               .unit_size = unit,
               .sorted_ids = ids,
               .sorted_weights = weights,
               .sorted_expert_ids = expert_ids,
               .num_valid_ids = valid},
              {.backend = BackendKind::kReference});
  }
  int64_t capacity;
  Buffer ids, weights, expert_ids, valid;
};

class Ops : public testing::TestWithParam<BackendKind> {
 protected:
  ops::Experts experts(const LayerCase& c, const RandomWeights& weights) const {
    return ops::Experts::create(c.spec, weights.weights().experts, {.backend = GetParam()});
  }
};

TEST_P(Ops, StepsInARowAreTheLayer) {
  for (const char* name : {"bf16", "mxfp4", "fp8_wide", "int8_smooth", "gpt_oss_like", "relu2",
                           "weight_on_input", "every_expert", "panel_plus_one"}) {
    const LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    const ops::Experts packed = experts(c, weights);
    constexpr int64_t kTokens = 19;
    const int64_t top_k = c.spec.top_k;
    Random random(6);
    const Buffer hidden = Buffer::normal(random, DataType::kF32, {kTokens, c.spec.hidden_size});
    Buffer ids = test::random_topk_ids(random, kTokens, top_k, c.spec.num_experts);
    const Buffer topk_weights = test::random_topk_weights(random, kTokens, top_k);
    if (top_k > 1) ids.set(3 * top_k + 1, -1);  // a skipped pair: its rows stay poisoned
    for (int64_t unit : {1, 16, 32}) {
      const Sorted sorted(ids, topk_weights, c.spec.num_experts, unit);
      const Buffer inner(DataType::kF32, {kTokens, top_k, c.spec.intermediate_size});
      const Buffer rows(DataType::kF32, {kTokens, top_k, c.spec.hidden_size});
      const Buffer output(DataType::kF32, {kTokens, c.spec.hidden_size});
      const GuardedMemory workspace(packed.workspace_bytes(kTokens, top_k));
      packed.gate_up({.hidden_states = hidden,
                      .sorted_ids = sorted.ids,
                      .sorted_expert_ids = sorted.expert_ids,
                      .num_valid_ids = sorted.valid,
                      .sorted_weights = sorted.weights,
                      .unit_size = unit,
                      .top_k = top_k,
                      .output = inner},
                     workspace.workspace());
      packed.down({.intermediate = inner,
                   .sorted_ids = sorted.ids,
                   .sorted_expert_ids = sorted.expert_ids,
                   .num_valid_ids = sorted.valid,
                   .sorted_weights = sorted.weights,
                   .unit_size = unit,
                   .top_k = top_k,
                   .output = rows},
                  workspace.workspace());
      ops::combine({.expert_output = rows,
                    .topk_ids = ids,
                    .num_experts = c.spec.num_experts,
                    .output = output},
                   {.backend = GetParam()});
      EXPECT_TRUE(workspace.canaries_intact() && inner.canaries_intact() &&
                  rows.canaries_intact() && output.canaries_intact());
      if (top_k > 1) {
        const int64_t skipped = 3 * top_k + 1;
        EXPECT_TRUE(inner.untouched(skipped * c.spec.intermediate_size,
                                    (skipped + 1) * c.spec.intermediate_size));
        EXPECT_TRUE(
            rows.untouched(skipped * c.spec.hidden_size, (skipped + 1) * c.spec.hidden_size));
      }
      const Buffer truth =
          test::naive_forward(c.spec, weights.weights(), hidden, ids, topk_weights);
      EXPECT_TRUE(test::within(output, truth, error_bound(c.spec, GetParam(), DataType::kF32), ids))
          << name << ", unit " << unit;
    }
  }
}

TEST_P(Ops, DownWithoutWeightsLeavesThemToCombine) {
  const LayerCase& c = test::layer_case("bf16");
  const RandomWeights weights(c.spec, c.weights);
  const ops::Experts packed = experts(c, weights);
  Random random(6);
  const Buffer ids = test::random_topk_ids(random, 5, 2, c.spec.num_experts);
  const Buffer topk_weights = test::random_topk_weights(random, 5, 2);
  const Sorted sorted(ids, topk_weights, c.spec.num_experts, 8);
  const Buffer inner = Buffer::normal(random, DataType::kF32, {5, 2, c.spec.intermediate_size});
  const GuardedMemory workspace(packed.workspace_bytes(5, 2));
  const auto run = [&](const TensorView& sorted_weights) {
    Buffer rows(DataType::kF32, {5, 2, c.spec.hidden_size});
    packed.down({.intermediate = inner,
                 .sorted_ids = sorted.ids,
                 .sorted_expert_ids = sorted.expert_ids,
                 .num_valid_ids = sorted.valid,
                 .sorted_weights = sorted_weights,
                 .unit_size = 8,
                 .top_k = 2,
                 .output = rows},
                workspace.workspace());
    return rows;
  };
  const Buffer plain = run({});
  const Buffer weighted = run(sorted.weights);
  for (int64_t pair = 0; pair < 10; ++pair) {
    const auto expert = static_cast<int64_t>(ids.at(pair));
    for (int64_t h = 0; h < c.spec.hidden_size; ++h) {
      double exact = 0;
      for (int64_t i = 0; i < c.spec.intermediate_size; ++i)
        exact += decode_element(weights.expert(expert).down, h, i) *
                 inner.at(pair * c.spec.intermediate_size + i);
      const int64_t at = pair * c.spec.hidden_size + h;
      ASSERT_NEAR(plain.at(at), exact, 3e-6) << "pair " << pair << ", column " << h;
      ASSERT_NEAR(weighted.at(at), topk_weights.at(pair) * exact, 3e-6);
    }
  }
}

TEST_P(Ops, DenseIsTheSumOverAllExpertsWithAlpha) {
  for (const char* name : {"bf16", "mxfp4", "gpt_oss_like", "weight_on_input"}) {
    const LayerCase& c = test::layer_case(name);
    const RandomWeights weights(c.spec, c.weights);
    const ops::Experts packed = experts(c, weights);
    constexpr int64_t kTokens = 11;
    Random random(2);
    const Buffer hidden = Buffer::normal(random, DataType::kF32, {kTokens, c.spec.hidden_size});
    const Buffer ids = test::random_topk_ids(random, kTokens, c.spec.top_k, c.spec.num_experts);
    const Buffer topk_weights = test::random_topk_weights(random, kTokens, c.spec.top_k);
    Buffer alpha = Buffer::zeros(DataType::kF32, {kTokens, c.spec.num_experts});
    for (int64_t pair = 0; pair < ids.size(); ++pair)
      alpha.set(pair / c.spec.top_k * c.spec.num_experts + static_cast<int64_t>(ids.at(pair)),
                topk_weights.at(pair));
    const Buffer output(DataType::kF32, {kTokens, c.spec.hidden_size});
    const GuardedMemory workspace(packed.workspace_bytes(kTokens, c.spec.top_k));
    packed.dense({.hidden_states = hidden, .alpha = alpha, .output = output},
                 workspace.workspace());
    EXPECT_TRUE(workspace.canaries_intact() && output.canaries_intact());
    const Buffer truth = test::naive_forward(c.spec, weights.weights(), hidden, ids, topk_weights);
    EXPECT_TRUE(test::within(output, truth, error_bound(c.spec, GetParam(), DataType::kF32), ids))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Ops, testing::ValuesIn(test::available_backends()),
                         [](const auto& kind) { return std::string(to_string(kind.param)); });

TEST(StackedExperts, ViewsAreTheRowsOfTheStackedTensors) {
  Random random(13);
  constexpr int64_t kExperts = 3, kInner = 40, kHidden = 72;
  for (Format format : {Format::kBf16, Format::kMxfp4, Format::kFp8E4m3}) {
    for (bool gated : {true, false}) {
      // Experts stacked along the rows of one matrix are the leading dimension of a 3-D tensor; the
      // scale block must not cross from one expert to the next.
      test::MatrixOptions options = test::usual_matrix(format);
      if (format == Format::kFp8E4m3) options.scale_block = {8, 24};
      const int64_t rows = gated ? 2 * kInner : kInner;
      const auto stack = [&](const WeightMatrix& m, int64_t per_expert) {
        const auto three = [&](const TensorView& v, int64_t n) {
          return v.empty() ? TensorView{}
                           : TensorView::contiguous(v.data, v.type, {kExperts, n, v.extent(1)});
        };
        const int64_t block = options.scale_block.rows == 0 ? 1 : options.scale_block.rows;
        return std::pair{three(m.values, per_expert), three(m.scales, per_expert / block)};
      };
      const auto gate_up = test::random_matrix(random, kExperts * rows, kHidden, options);
      const auto down = test::random_matrix(random, kExperts * kHidden, kInner, options);
      const Buffer bias = Buffer::normal(random, DataType::kBf16, {kExperts, rows});
      const Buffer down_bias = Buffer::normal(random, DataType::kF32, {kExperts, kHidden});
      const auto [gate_up_values, gate_up_scales] = stack(gate_up.matrix, rows);
      const auto [down_values, down_scales] = stack(down.matrix, kHidden);
      for (GateUpOrder order : {GateUpOrder::kConcatenated, GateUpOrder::kInterleaved}) {
        const ExpertSource source = expert_source({.format = format,
                                                   .scale_block = options.scale_block,
                                                   .order = order,
                                                   .gated = gated,
                                                   .gate_up = gate_up_values,
                                                   .gate_up_scales = gate_up_scales,
                                                   .gate_up_bias = bias,
                                                   .down = down_values,
                                                   .down_scales = down_scales,
                                                   .down_bias = down_bias});
        ASSERT_EQ(source.num_experts, kExperts);
        const bool interleaved = order == GateUpOrder::kInterleaved;
        for (int64_t e = 0; e < kExperts; ++e) {
          const ExpertWeights expert = source.load(e);
          EXPECT_EQ(expert.gate.empty(), !gated);
          for (int64_t i = 0; i < kInner; ++i) {
            const int64_t gate_row = e * rows + (interleaved ? 2 * i : i);
            const int64_t up_row = !gated        ? e * rows + i
                                   : interleaved ? gate_row + 1
                                                 : gate_row + kInner;
            for (int64_t k = 0; k < kHidden; ++k) {
              ASSERT_EQ(decode_element(expert.up, i, k), decode_element(gate_up.matrix, up_row, k));
              if (gated) {
                ASSERT_EQ(decode_element(expert.gate, i, k),
                          decode_element(gate_up.matrix, gate_row, k));
              }
            }
            const auto at = [](const TensorView& v, int64_t n) {
              return static_cast<double>(load_as_f32(v.data, v.type, n * v.stride(0)));
            };
            ASSERT_EQ(at(expert.up_bias, i), bias.at(up_row));
            if (gated) {
              ASSERT_EQ(at(expert.gate_bias, i), bias.at(gate_row));
            }
          }
          for (int64_t h = 0; h < kHidden; ++h)
            ASSERT_EQ(decode_element(expert.down, h, 7),
                      decode_element(down.matrix, e * kHidden + h, 7));
          ASSERT_EQ(expert.down_bias.as<float>()[5],
                    static_cast<float>(down_bias.at(e * kHidden + 5)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
