// Shared experts among the routed ones: the parts are the matrices' own bytes, the layer they make
// computes the same, and what cannot be fused says why.

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "core/weight_matrix.h"
#include "layer/fuse_shared.h"
#include "support/compare.h"
#include "support/random_weights.h"
#include "support/run_layer.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::Random;

struct Case {
  std::string name;
  LayerSpec spec;
  test::WeightsOptions weights;
};

/// `count` times a routed expert's intermediate.
Case alike(Format format, int64_t inner, int64_t count) {
  LayerSpec spec = with_format(
      {.num_experts = 5, .top_k = 2, .hidden_size = 48, .intermediate_size = inner}, format);
  spec.shared.intermediate_size = count * inner;
  return {.name = std::string(to_string(format)) + " x " + std::to_string(count),
          .spec = spec,
          .weights = {.biases = true, .shared_format = format}};
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int64_t count : {1, 2, 3}) {
    for (const Format format : {Format::kF32, Format::kBf16, Format::kF16, Format::kInt8})
      all.push_back(alike(format, 24, count));
    all.push_back(alike(Format::kFp8E4m3, 128, count));
    for (const Format format : {Format::kInt4, Format::kMxfp4, Format::kMxfp8, Format::kNvfp4})
      all.push_back(alike(format, 32, count));
  }
  Case plain = alike(Format::kBf16, 16, 2);
  plain.spec.activation.kind = Activation::kRelu2;
  plain.spec.weight_position = WeightPosition::kInput;
  all.push_back(plain);
  return all;
}

std::vector<double> elements(const WeightMatrix& m) {
  std::vector<double> values;
  for (int64_t row = 0; row < m.rows; ++row)
    for (int64_t col = 0; col < m.cols; ++col) values.push_back(decode_element(m, row, col));
  return values;
}

TEST(FuseShared, PartsAreTheStoredMatricesCutAlongTheIntermediate) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const test::RandomWeights weights(c.spec, c.weights);
    const Weights w = weights.weights();
    const FusedShared fused = fuse_shared(c.spec, w.experts, w.shared);
    ASSERT_EQ(fused.why_not, "");
    const int64_t size = c.spec.intermediate_size;
    const int64_t count = c.spec.shared.intermediate_size / size;
    EXPECT_EQ(fused.spec.num_experts, 5 + count);
    EXPECT_EQ(fused.spec.top_k, 2 + count);
    EXPECT_EQ(fused.spec.num_fused_shared, count);
    EXPECT_EQ(fused.spec.fused_shared_weight, 1.0f);
    EXPECT_EQ(fused.spec.shared, SharedExpertSpec{});
    EXPECT_EQ(fused.experts.num_experts, 5 + count);
    for (int64_t e = 0; e < 5; ++e)
      EXPECT_EQ(elements(fused.experts.load(e).down), elements(w.experts.load(e).down));
    for (int64_t part = 0; part < count; ++part) {
      const ExpertWeights cut = fused.experts.load(5 + part);
      ASSERT_EQ(cut.up.rows, size);
      ASSERT_EQ(cut.down.cols, size);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t at = part * size + i;
        for (int64_t h = 0; h < c.spec.hidden_size; ++h) {
          ASSERT_EQ(decode_element(cut.down, h, i), decode_element(w.shared.down, h, at));
          ASSERT_EQ(decode_element(cut.up, i, h), decode_element(w.shared.up, at, h));
          if (w.shared.gate.empty()) continue;
          ASSERT_EQ(decode_element(cut.gate, i, h), decode_element(w.shared.gate, at, h));
        }
      }
    }
  }
}

TEST(FuseShared, WordsOfPackedValuesAndZeroPointsAreCutToo) {
  Case c = alike(Format::kInt4, 32, 2);
  const auto options = [](int64_t cols) {
    return test::MatrixOptions{.format = Format::kInt4,
                               .scale_block = {1, 32},
                               .int32_words = true,
                               .zero_points = true,
                               .deviation = cols > 0 ? 0.1 : 0.0};
  };
  Random random(3);
  const auto down = test::random_matrix(random, 48, 64, options(64));
  const auto up = test::random_matrix(random, 64, 48, options(48));
  c.weights.matrix = options(0);
  const test::RandomWeights weights(c.spec, c.weights);
  Weights w = weights.weights();
  w.shared.down = down.matrix;
  w.shared.up = w.shared.gate = up.matrix;
  const FusedShared fused = fuse_shared(c.spec, w.experts, w.shared);
  ASSERT_EQ(fused.why_not, "");
  for (int64_t e = 0; e < 2; ++e)
    for (int64_t row = 0; row < 48; ++row)
      for (int64_t col = 0; col < 32; ++col)
        ASSERT_EQ(decode_element(fused.experts.load(5 + e).down, row, col),
                  decode_element(down.matrix, row, e * 32 + col));
}

/// The definition itself, in double: only the order of the last sum differs.
TEST(FuseShared, TheReferenceComputesTheSameLayer) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const test::RandomWeights weights(c.spec, c.weights);
    const Weights w = weights.weights();
    const FusedShared fused = fuse_shared(c.spec, w.experts, w.shared);
    Weights own = w;
    own.experts = fused.experts;
    own.shared = {};
    const LayerOptions options{.backend = BackendKind::kReference};
    const Layer before = Layer::create(c.spec, w, options);
    const Layer after = Layer::create(fused.spec, own, options);
    Random random(9);
    const Buffer hidden = Buffer::normal(random, DataType::kF32, {7, c.spec.hidden_size});
    const test::LayerRun want = test::run_layer(before, hidden);
    const test::LayerRun got = test::run_layer(after, hidden);
    EXPECT_TRUE(test::within(got.output, want.output, {.rms = 1e-7, .worst = 1e-6}));
  }
}

TEST(FuseShared, EveryExpertIsLoadedAndReleasedOnce) {
  const Case c = alike(Format::kBf16, 24, 2);
  const test::RandomWeights weights(c.spec, c.weights);
  std::map<int64_t, int> loads, releases;
  const ExpertSource counted{.num_experts = 5,
                             .load =
                                 [&](int64_t e) {
                                   ++loads[e];
                                   return weights.expert(e);
                                 },
                             .release = [&](int64_t e) { ++releases[e]; }};
  const FusedShared fused = fuse_shared(c.spec, counted, weights.weights().shared);
  EXPECT_TRUE(releases.empty());
  for (int64_t e = 0; e < fused.experts.num_experts; ++e) {
    static_cast<void>(fused.experts.load(e));
    fused.experts.release(e);
  }
  for (int64_t e = 0; e < 5; ++e) {
    EXPECT_EQ(loads[e], 1);
    EXPECT_EQ(releases[e], 1);
  }
  EXPECT_EQ(loads.size(), 5u);
  EXPECT_EQ(releases.size(), 5u);
}

TEST(FuseShared, SaysWhyNot) {
  const auto why = [](const Case& c, auto change) {
    const test::RandomWeights weights(c.spec, c.weights);
    Weights w = weights.weights();
    change(w);
    const FusedShared fused = fuse_shared(c.spec, w.experts, w.shared);
    EXPECT_EQ(fused.spec, c.spec);
    EXPECT_EQ(fused.experts.num_experts, c.spec.num_experts);
    return fused.why_not;
  };
  const auto as_is = [](Weights&) {};
  Case gated = alike(Format::kBf16, 24, 1);
  gated.spec.shared.sigmoid_gate = true;
  EXPECT_EQ(why(gated, [](Weights& w) { w.shared.down_bias = {}; }),
            "their scales, zero points or biases are stored otherwise");
  gated.spec.weight_position = WeightPosition::kInput;
  EXPECT_EQ(why(gated, as_is), "a gate weighs their output, routing weights the input");
  Case latent = alike(Format::kBf16, 24, 1);
  latent.spec.latent_size = 32;
  EXPECT_EQ(why(latent, as_is), "the routed experts see a latent vector");
  Case wider = alike(Format::kBf16, 24, 1);
  wider.spec.shared.intermediate_size = 40;
  EXPECT_EQ(why(wider, as_is), "their intermediate size 40 is no multiple of 24");
  Case other = alike(Format::kInt4, 32, 1);
  other.weights.shared_format = Format::kBf16;
  EXPECT_EQ(why(other, as_is), "their weights are bf16 0x0, those of the routed experts int4 1x32");
  EXPECT_EQ(why(alike(Format::kFp8E4m3, 24, 2), as_is),
            "their scales or groups end elsewhere than every 24");
  EXPECT_EQ(why(alike(Format::kMxfp4, 16, 2), as_is),
            "their scales or groups end elsewhere than every 16");
  Case many = alike(Format::kF32, 1, 126);
  EXPECT_EQ(why(many, as_is), "126 more experts are too many");
  const std::string stored = "their scales, zero points or biases are stored otherwise";
  EXPECT_EQ(why(alike(Format::kBf16, 24, 1), [](Weights& w) { w.shared.down_bias = {}; }), stored);
  EXPECT_EQ(why(alike(Format::kInt8, 24, 1), [](Weights& w) { w.shared.down.scales = {}; }),
            stored);
  EXPECT_EQ(why(alike(Format::kNvfp4, 32, 1), [](Weights& w) { w.shared.up.global_scale = 1.0f; }),
            stored);
}

}  // namespace
}  // namespace switchyard
