// Every layer of the table, on every backend: the reference against the naive truth to the last
// bits of f32, the others against the reference within the bound that the formats allow.

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/layer_cases.h"
#include "support/naive_layer.h"
#include "support/run_layer.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::LayerCase;
using test::LayerRun;
using test::Random;

class LayerTruth : public testing::TestWithParam<LayerCase> {
 protected:
  /// Routed by the layer; hash layers get token ids.
  static LayerRun run(const Layer& layer, const TensorView& hidden,
                      const TensorView& router_logits = {}) {
    Random random(77);
    const Buffer input_ids = test::random_input_ids(random, hidden.extent(0), 64);
    return test::run_layer(layer, hidden, {.router_logits = router_logits, .input_ids = input_ids});
  }
};

TEST_P(LayerTruth, ReferenceIsTheDefinition) {
  const LayerCase& c = GetParam();
  const test::RandomWeights weights(c.spec, c.weights);
  const Layer layer =
      Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kReference});
  Random random(1);
  const Buffer hidden = Buffer::normal(random, DataType::kF32, {5, c.spec.hidden_size});
  const LayerRun run = this->run(layer, hidden);
  const Buffer truth =
      test::naive_forward(c.spec, weights.weights(), hidden, run.topk_ids, run.topk_weights);
  // f32: the output, and before it the shared experts, the latent vectors and each decoded weight.
  EXPECT_TRUE(test::within(run.output, truth, {.rms = 1.5e-7, .worst = 1.5e-6}, run.topk_ids));
}

TEST_P(LayerTruth, OwnRouterMakesTheLogitsOfItsDefinition) {
  const LayerCase& c = GetParam();
  const test::RandomWeights weights(c.spec, c.weights);
  Random random(2);
  const Buffer hidden = Buffer::normal(random, DataType::kBf16, {9, c.spec.hidden_size});
  const Buffer exact = test::naive_logits(weights.weights(), hidden);
  Buffer logits(DataType::kF32, {9, c.spec.num_routed()});
  for (int64_t i = 0; i < logits.size(); ++i) logits.set(i, exact.at(i));
  for (BackendKind kind : test::available_backends()) {
    const Layer layer = Layer::create(c.spec, weights.weights(), {.backend = kind});
    const LayerRun own = this->run(layer, hidden);
    const LayerRun given = this->run(layer, hidden, logits);
    for (int64_t i = 0; i < own.topk_ids.size(); ++i) {
      ASSERT_EQ(own.topk_ids.at(i), given.topk_ids.at(i)) << to_string(kind) << " pair " << i;
      ASSERT_NEAR(own.topk_weights.at(i), given.topk_weights.at(i), 2e-5) << "pair " << i;
    }
  }
}

TEST_P(LayerTruth, BackendsAgreeWithTheReference) {
  const LayerCase& c = GetParam();
  const test::RandomWeights weights(c.spec, c.weights);
  const Layer reference =
      Layer::create(c.spec, weights.weights(), {.backend = BackendKind::kReference});
  for (BackendKind kind : test::available_backends()) {
    const Layer layer = Layer::create(c.spec, weights.weights(), {.backend = kind});
    for (DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
      for (int64_t num_tokens : {1, 3, 34}) {
        Random random(static_cast<uint64_t>(num_tokens));
        const Buffer hidden = Buffer::normal(random, type, {num_tokens, c.spec.hidden_size});
        const LayerRun run = this->run(layer, hidden);
        // The same routing for both: a near tie may fall either way in f32. The truth stays in f32.
        const LayerRun truth =
            test::run_layer(reference, hidden.to(DataType::kF32),
                            {.topk_ids = run.topk_ids, .topk_weights = run.topk_weights});
        EXPECT_TRUE(
            test::within(run.output, truth.output, error_bound(c.spec, kind, type), run.topk_ids))
            << to_string(kind) << ", " << to_string(type) << ", " << num_tokens << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, LayerTruth, testing::ValuesIn(test::layer_cases()),
                         [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace switchyard
