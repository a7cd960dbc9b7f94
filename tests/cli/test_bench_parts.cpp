// What `bench` feeds to a layer and makes of its samples: routing draws, the cache model, synthetic
// weights, limits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <list>
#include <numeric>
#include <set>

#include "cli/bench_measure.h"
#include "cli/bench_model.h"
#include "cli/bench_routing.h"
#include "cli/layer_cost.h"
#include "cli/random.h"
#include "cli/synthetic.h"
#include "core/weight_matrix.h"
#include "switchyard/models.h"

namespace switchyard::cli {
namespace {

using ::testing::ElementsAre;

/// Counts of the top_k largest logits of every token.
std::vector<double> choice_counts(const TensorView& logits, int64_t top_k) {
  const int64_t num_experts = logits.extent(1);
  std::vector<double> counts(static_cast<size_t>(num_experts));
  std::vector<int64_t> order(static_cast<size_t>(num_experts));
  for (int64_t t = 0; t < logits.extent(0); ++t) {
    const float* row = logits.as<float>() + t * num_experts;
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [row](int64_t a, int64_t b) { return row[a] > row[b]; });
    for (int64_t k = 0; k < top_k; ++k)
      counts[static_cast<size_t>(order[static_cast<size_t>(k)])] += 1;
  }
  return counts;
}

TEST(RouterLogits, WithoutSkewChooseUniformly) {
  constexpr int64_t kTokens = 20000;
  const HostTensor logits(DataType::kF32, {kTokens, 16});
  fill_router_logits(logits.view(), 0, 1, 2);
  for (const double count : choice_counts(logits.view(), 4)) {
    EXPECT_NEAR(count / kTokens, 4.0 / 16, 0.015);  // 5 sigma
  }
}

TEST(RouterLogits, FirstChoiceFollowsZipf) {
  constexpr int64_t kTokens = 40000;
  constexpr int64_t kExperts = 32;
  const HostTensor logits(DataType::kF32, {kTokens, kExperts});
  fill_router_logits(logits.view(), 1.2, 3, 4);
  std::vector<double> counts = choice_counts(logits.view(), 1);
  std::sort(counts.rbegin(), counts.rend());
  double norm = 0;
  for (int rank = 1; rank <= kExperts; ++rank) norm += std::pow(rank, -1.2);
  for (int rank = 1; rank <= 8; ++rank) {
    const double p = std::pow(rank, -1.2) / norm;
    EXPECT_NEAR(counts[static_cast<size_t>(rank - 1)] / kTokens, p, 6 * std::sqrt(p / kTokens));
  }
}

TEST(RouterLogits, SeedsDecidePopularityAndDraw) {
  const HostTensor a(DataType::kF32, {50, 64});
  const HostTensor b(DataType::kF32, {50, 64});
  fill_router_logits(a.view(), 1, 5, 6);
  fill_router_logits(b.view(), 1, 5, 6);
  EXPECT_TRUE(same_bits(a.view(), b.view()));
  fill_router_logits(b.view(), 1, 5, 7);
  EXPECT_FALSE(same_bits(a.view(), b.view()));
}

TEST(DistinctExperts, SkipsIdsOutOfRange) {
  const HostTensor ids(DataType::kI32, {3, 2});
  const std::vector<int32_t> values{4, 1, -1, 4, 9, 0};
  std::copy(values.begin(), values.end(), ids.as<int32_t>());
  EXPECT_THAT(distinct_experts(ids.view(), 8), ElementsAre(0, 1, 4));
  EXPECT_DOUBLE_EQ(imbalance(ids.view(), 8), 2.0 * 8 / 4);
  EXPECT_THAT(distinct_experts(HostTensor(DataType::kI32, {0, 2}).view(), 8), ElementsAre());
}

TEST(CacheModel, IsLeastRecentlyUsed) {
  // Against the textbook stack distance: a hit when fewer than `capacity` others came in between.
  Random random(9);
  for (const int64_t capacity : {0, 1, 3, 10}) {
    CacheModel cache(capacity);
    std::list<std::pair<int64_t, int32_t>> stack;
    int64_t hits = 0;
    constexpr int kReads = 2000;
    for (int i = 0; i < kReads; ++i) {
      const std::pair key{random.below(3), static_cast<int32_t>(random.below(4))};
      cache.read(key.first, key.second);
      const auto found = std::find(stack.begin(), stack.end(), key);
      if (found != stack.end()) {
        hits += std::distance(stack.begin(), found) < capacity ? 1 : 0;
        stack.erase(found);
      }
      stack.push_front(key);
    }
    EXPECT_DOUBLE_EQ(cache.hit_fraction(), static_cast<double>(hits) / kReads) << capacity;
  }
}

class SyntheticFormats : public ::testing::TestWithParam<Format> {};

TEST_P(SyntheticFormats, AreFiniteDistinctAndCounted) {
  LayerSpec spec{.num_experts = 6, .top_k = 2, .hidden_size = 96, .intermediate_size = 160};
  spec.shared = {.intermediate_size = 32, .sigmoid_gate = true};
  spec = with_format(spec, GetParam());
  const SyntheticLayer layer({.biases = true, .selection_bias = true}, spec, 1);
  const Weights weights = layer.weights();
  ASSERT_EQ(weights.experts.num_experts, 6);
  ASSERT_EQ(weights.router.selection_bias.num_elements(), 6);
  EXPECT_EQ(expert_bytes(spec, true), stored_bytes(weights.experts.load(0)));
  const ExpertWeights expert = weights.experts.load(1);
  for (const WeightMatrix& matrix : {expert.gate, expert.up, expert.down, weights.shared.down}) {
    std::set<double> values;
    double squares = 0;
    for (int64_t n = 0; n < matrix.rows; ++n) {
      for (int64_t k = 0; k < matrix.cols; ++k) {
        const double value = decode_element(matrix, n, k);
        ASSERT_TRUE(std::isfinite(value));
        values.insert(value);
        squares += value * value;
      }
    }
    const double rms = std::sqrt(squares / static_cast<double>(matrix.rows * matrix.cols));
    EXPECT_GT(rms, 1e-5);
    EXPECT_LT(rms, 1);
    EXPECT_GT(values.size(), 10u);
  }
  // Another expert's content, and the same again after a whole turn.
  EXPECT_NE(expert.up.values.data, weights.experts.load(2).up.values.data);
  EXPECT_EQ(
      expert.up.values.data,
      weights.experts.load(1 + static_cast<int64_t>(layer.num_distinct_contents())).up.values.data);
}

INSTANTIATE_TEST_SUITE_P(All, SyntheticFormats,
                         ::testing::Values(Format::kF32, Format::kF16, Format::kBf16,
                                           Format::kFp8E4m3, Format::kFp8E5m2, Format::kInt8,
                                           Format::kInt4, Format::kMxfp4, Format::kMxfp8,
                                           Format::kNvfp4),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST(ExpertBytes, AreThoseOfTheFormats) {
  // From the formats' definitions: 3 H I weights and their scales.
  const LayerSpec qwen = model_shape("qwen3-30b-a3b").spec;
  const int64_t weights = 3 * 2048 * 768;
  EXPECT_EQ(expert_bytes(with_format(qwen, Format::kBf16), false), 2 * weights);
  EXPECT_EQ(expert_bytes(with_format(qwen, Format::kMxfp4), false), weights * 17 / 32);
  EXPECT_EQ(expert_bytes(with_format(qwen, Format::kNvfp4), false), weights * 9 / 16);
  EXPECT_EQ(expert_bytes(with_format(qwen, Format::kFp8E4m3), false),
            weights + 4 * weights / (128 * 128));
  const ModelShape& oss = model_shape("gpt-oss-120b");
  EXPECT_EQ(expert_bytes(oss.spec, oss.biases), 3 * 2880 * 2880 * 17 / 32 + 2 * 3 * 2880);
}

TEST(LayerCost, ExpectedDistinctExpertsMatchesDraws) {
  LayerSpec spec{.num_experts = 128, .top_k = 8};
  EXPECT_DOUBLE_EQ(expected_distinct_experts(spec, 0), 0);
  EXPECT_DOUBLE_EQ(expected_distinct_experts(spec, 1), 8);
  EXPECT_NEAR(expected_distinct_experts(spec, 64), 125.9, 0.1);
  EXPECT_NEAR(expected_distinct_experts(spec, 100000), 128, 1e-9);
  const HostTensor logits(DataType::kF32, {16, 128});
  double sum = 0;
  for (uint64_t draw = 0; draw < 200; ++draw) {
    fill_router_logits(logits.view(), 0, 1, 1000 + draw);
    for (const double count : choice_counts(logits.view(), 8)) sum += count > 0 ? 1 : 0;
  }
  EXPECT_NEAR(sum / 200, expected_distinct_experts(spec, 16), 1.0);
}

TEST(LayerCost, CountsTwoFlopsPerMultiplyAdd) {
  LayerSpec spec{.num_experts = 4, .top_k = 2, .hidden_size = 10, .intermediate_size = 6};
  EXPECT_DOUBLE_EQ(expert_flops(spec, 3), 3 * 2 * 2 * (3 * 10 * 6));
  EXPECT_DOUBLE_EQ(router_flops(spec, 3), 3 * 2 * (10 * 4));
  spec.shared.intermediate_size = 5;
  EXPECT_DOUBLE_EQ(expert_flops(spec, 1), 2 * 2 * (3 * 10 * 6) + 2 * 3 * 10 * 5);
  spec.activation.kind = Activation::kRelu2;
  spec.latent_size = 7;
  EXPECT_DOUBLE_EQ(expert_flops(spec, 1), 2 * 2 * (2 * 7 * 6) + 2 * 2 * 10 * 5 + 2 * 2 * 10 * 7);
}

TEST(LayerCost, FloorIsTheLongerOfMemoryAndArithmetic) {
  MachineLimits limits;
  limits.read_gbps = 10;
  limits.f32_gflops = 100;
  limits.int8_gops = 400;
  LayerSpec spec{.weight_format = Format::kBf16};
  EXPECT_DOUBLE_EQ(time_floor(1e6, 1e6, spec, limits).us, 100);  // 1 MB at 10 GB/s
  EXPECT_TRUE(time_floor(1e6, 1e6, spec, limits).memory_bound);
  EXPECT_DOUBLE_EQ(time_floor(1e6, 1e9, spec, limits).us, 1e4);  // 1 GFLOP at 100 GFLOP/s
  EXPECT_FALSE(time_floor(1e6, 1e9, spec, limits).memory_bound);
  spec.weight_format = Format::kMxfp4;
  EXPECT_DOUBLE_EQ(time_floor(0, 1e9, spec, limits).us, 2500);  // int8
  spec.activation_format = ActivationFormat::kNone;
  EXPECT_DOUBLE_EQ(time_floor(0, 1e9, spec, limits).us, 1e4);  // f32
}

TEST(LayerCost, PeakIsOfTheOperandsThatTheBackendMultiplies) {
  MachineLimits limits{.backend = BackendKind::kCuda};
  limits.f32_gflops = 1;
  limits.bf16_gflops = 2;
  limits.int8_gops = 4;
  limits.fp8_gflops = 5;
  const auto peak = [&](Format weights, ScaleBlock block, ActivationFormat activations) {
    const LayerSpec spec{
        .weight_format = weights, .weight_scale_block = block, .activation_format = activations};
    return std::string(arithmetic_peak(spec, limits).name);
  };
  constexpr auto kAuto = ActivationFormat::kAuto;
  EXPECT_EQ(peak(Format::kFp8E4m3, {128, 128}, kAuto), "fp8");
  EXPECT_EQ(peak(Format::kFp8E4m3, {1, 32}, kAuto), "bf16");  // no rate for such scales
  EXPECT_EQ(peak(Format::kInt8, {1, 0}, kAuto), "int8");
  EXPECT_EQ(peak(Format::kMxfp4, {1, 32}, kAuto), "bf16");
  EXPECT_EQ(peak(Format::kMxfp4, {1, 32}, ActivationFormat::kMxfp4), "fp8");
  EXPECT_EQ(peak(Format::kInt4, {1, 32}, ActivationFormat::kInt8PerToken), "int8");
  EXPECT_EQ(peak(Format::kBf16, {}, ActivationFormat::kFp8PerToken), "bf16");
  limits.backend = BackendKind::kCpu;
  EXPECT_EQ(peak(Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128), "bf16");
  EXPECT_EQ(peak(Format::kMxfp4, {1, 32}, kAuto), "int8");
}

TEST(TensorParallel, CutsAtScaleBlocks) {
  LayerSpec spec{.intermediate_size = 1536};
  const auto split = [&spec](Format format, ScaleBlock block, int64_t ranks) {
    spec.weight_format = format;
    spec.weight_scale_block = block;
    return tensor_parallel_split(spec, ranks);
  };
  EXPECT_TRUE(split(Format::kBf16, {}, 8).on_block_boundaries());
  EXPECT_TRUE(split(Format::kFp8E4m3, {128, 128}, 4).on_block_boundaries());
  const TensorParallelSplit fp8 = split(Format::kFp8E4m3, {128, 128}, 8);
  EXPECT_EQ(fp8.shard, 192);
  EXPECT_EQ(fp8.padded_shard, 256);
  EXPECT_TRUE(split(Format::kMxfp4, {1, 32}, 8).on_block_boundaries());
  EXPECT_TRUE(split(Format::kFp8E4m3, {1, 0}, 8).on_block_boundaries());
  spec.intermediate_size = 2880;  // gpt-oss: 2880 / 8 = 360 = 11.25 blocks of 32
  EXPECT_EQ(split(Format::kMxfp4, {1, 32}, 8).padded_shard, 384);
  spec.intermediate_size = 30;  // uneven
  EXPECT_EQ(split(Format::kBf16, {}, 4).shard, 8);
}

TEST(AutoNumLayers, ExceedsTheCachesWithinMemory) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  const auto layers = [](int64_t layer_bytes, int64_t l3_mib, int64_t memory_mib) {
    Machine machine;
    machine.l3_bytes = l3_mib * kMiB;
    machine.memory_bytes = memory_mib * kMiB;
    machine.available_memory_bytes = machine.memory_bytes;
    return auto_num_layers(layer_bytes, machine);
  };
  EXPECT_EQ(layers(306 * kMiB, 32, 24000), 4);  // 1 GiB
  EXPECT_EQ(layers(2000 * kMiB, 32, 24000), 1);
  EXPECT_EQ(layers(1, 32, 24000), 64);
  EXPECT_EQ(layers(306 * kMiB, 1000, 500000), 14);  // 4 x L3
  EXPECT_EQ(layers(306 * kMiB, 32, 2000), 2);       // 40 % of memory
}

TEST(Summary, SetsEverySampleAgainstItsOwnExperts) {
  BenchModel model;
  model.spec = {.num_experts = 8, .top_k = 2, .hidden_size = 100, .intermediate_size = 10};
  model.expert_bytes = 1000000;
  model.shared_bytes = 500000;
  Measurement measurement;
  measurement.tokens = 1;
  measurement.samples = {{.us = 400, .distinct_experts = 2},
                         {.us = 200, .distinct_experts = 1},
                         {.us = 1000, .distinct_experts = 5}};
  Calibration machine;
  machine.limits.read_gbps = 10;
  machine.limits.f32_gflops = 1000;
  const Summary summary = summarize(model, measurement, machine);
  EXPECT_DOUBLE_EQ(summary.median_us, 400);
  EXPECT_DOUBLE_EQ(summary.distinct_experts, 8.0 / 3);
  EXPECT_DOUBLE_EQ(summary.gbps, 6.25);     // 2.5 MB in 400 us; the others 7.5 and 5.5
  EXPECT_DOUBLE_EQ(summary.limit_us, 250);  // 2.5 MB at 10 GB/s
  EXPECT_DOUBLE_EQ(summary.share, 0.625);
  EXPECT_DOUBLE_EQ(summary.gflops, 12000 / 400e3);
  EXPECT_TRUE(summary.memory_bound);

  // Reads timed beside a sample are its limit.
  measurement.samples[0].read_gbps = 20;
  const Summary beside = summarize(model, measurement, machine);
  EXPECT_DOUBLE_EQ(beside.share, 0.55);  // of 125 / 400, 150 / 200 and 550 / 1000
  EXPECT_DOUBLE_EQ(beside.read_gbps, 10);
}

TEST(Calibration, ReadsBetweenTheMeasuredSizes) {
  Calibration machine;
  machine.limits.read_gbps = 1000;
  EXPECT_DOUBLE_EQ(machine.read_us(5e6), 5);  // no sizes: by the rate
  machine.launch_us = 1;
  machine.streams = {
      {.bytes = 1e6, .read_us = 3}, {.bytes = 2e6, .read_us = 4}, {.bytes = 10e6, .read_us = 10}};
  EXPECT_DOUBLE_EQ(machine.read_us(1e6), 3);
  EXPECT_DOUBLE_EQ(machine.read_us(1.5e6), 3.5);
  EXPECT_DOUBLE_EQ(machine.read_us(6e6), 7);
  EXPECT_DOUBLE_EQ(machine.read_us(0.5e6), 2.5);
  EXPECT_DOUBLE_EQ(machine.read_us(20e6), 20);  // beyond: by the rate
}

}  // namespace
}  // namespace switchyard::cli
