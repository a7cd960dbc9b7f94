// switchyard verify: passes on sound backends, and its own checks catch what they are for.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/router_truth.h"
#include "command.h"
#include "support/random_weights.h"
#include "tiny_model.h"

namespace switchyard::test {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST(Verify, PassesOnEveryBackendOfThisMachine) {
  const TinyModel model;
  for (const std::string backend : {"cpu", "reference"}) {
    const CommandResult result = run_cli({"verify", model.directory(), "--layer", "0", "--backend",
                                          backend, "--tokens", "9", "--json"});
    EXPECT_EQ(result.status, 0) << result.out << result.err;
    const json report = json::parse(result.out);
    EXPECT_EQ(report["schema_version"], 1);
    EXPECT_EQ(report["passed"], true);
    EXPECT_GE(report["cases"].size(), 11u);
    for (const json& c : report["cases"]) {
      EXPECT_LE(c["rms_error"], c["rms_bound"]) << c["input"];
      EXPECT_LE(c["worst_error"], c["worst_bound"]) << c["input"];
      EXPECT_LT(c["rms_bound"], 0.01);
    }
  }
}

TEST(Verify, PassesOnEveryFixture) {
  int num_fixtures = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SWITCHYARD_SOURCE_DIR "/fixtures")) {
    if (!entry.is_directory()) continue;
    ++num_fixtures;
    const Checkpoint checkpoint = Checkpoint::open(entry.path());
    for (const int64_t layer : checkpoint.moe_layers()) {
      const CommandResult result = run_cli({"verify", entry.path(), "--layer",
                                            std::to_string(layer), "--tokens", "6", "--seed", "3"});
      EXPECT_EQ(result.status, 0) << entry.path() << "\n" << result.out << result.err;
    }
  }
  EXPECT_GE(num_fixtures, 10);
}

TEST(Verify, PrintsErrorsBesideBounds) {
  const TinyModel model;
  const CommandResult result =
      run_cli({"verify", model.directory(), "--layer", "0", "--tokens", "1"});
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  for (const char* part : {"rms error", "bound", "worst", "outlier channels", "near-tied router",
                           "one-hot rows", "denormal", "verified"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
}

TEST(Verify, RefusesBadArguments) {
  const TinyModel model;
  expect_refused({"verify", model.directory(), "--layer", "3"}, 2, {"--layer is 3"});
  expect_refused({"verify", model.directory(), "--layer", "0", "--tokens", "0"}, 2,
                 {"--tokens is 0"});
  expect_refused({"verify", model.directory(), "--layer", "0", "--activations", "int3"}, 2,
                 {"int3"});
  expect_refused({"verify", model.file("absent"), "--layer", "0"}, 2, {"absent"});
}

/// Routers of every kind with random weights.
struct RouterCase {
  const char* name;
  RoutingSpec routing;
  bool logit_bias = false;
  bool selection_bias = false;
  bool input_norm = false;
};
void PrintTo(const RouterCase& router, std::ostream* out) { *out << router.name; }
class RouterTruthOf : public ::testing::TestWithParam<RouterCase> {
 protected:
  RouterTruthOf() {
    spec_.routing = GetParam().routing;
    WeightsOptions options;
    options.logit_bias = GetParam().logit_bias;
    options.selection_bias = GetParam().selection_bias;
    options.input_norm = GetParam().input_norm;
    random_ = std::make_unique<RandomWeights>(spec_, options);
    weights_ = random_->weights();
  }
  LayerSpec spec_{.num_experts = 32, .top_k = 4, .hidden_size = 80, .intermediate_size = 32};
  std::unique_ptr<RandomWeights> random_;
  Weights weights_;
};

TEST_P(RouterTruthOf, AcceptsTheExactChoiceAndNoOther) {
  const cli::RouterTruth truth(spec_, weights_.router);
  Random random(5);
  const Buffer x = Buffer::normal(random, DataType::kF32, {20, 80});
  const auto choice = truth.choose(truth.logits(x).values, {});
  const TensorView ids = choice.ids.view();
  const TensorView weights = choice.weights.view();
  EXPECT_EQ(truth.why_wrong(x, {}, ids, weights), "");
  // Any order will do.
  std::swap(ids.as<int32_t>()[0], ids.as<int32_t>()[1]);
  std::swap(weights.as<float>()[0], weights.as<float>()[1]);
  EXPECT_EQ(truth.why_wrong(x, {}, ids, weights), "");
  // A weight off by 1e-3, an expert that is not among the best, one chosen twice.
  weights.as<float>()[6] *= 1.001f;
  EXPECT_THAT(truth.why_wrong(x, {}, ids, weights), HasSubstr("token 1: weight of expert"));
  weights.as<float>()[6] /= 1.001f;
  const int32_t kept = ids.as<int32_t>()[9];
  const auto unchosen = [&ids] {
    for (int32_t e = 0;; ++e) {
      if (std::count(ids.as<int32_t>() + 8, ids.as<int32_t>() + 12, e) == 0) return e;
    }
  }();
  ids.as<int32_t>()[9] = unchosen;
  EXPECT_THAT(truth.why_wrong(x, {}, ids, weights), HasSubstr("token 2"));
  ids.as<int32_t>()[9] = ids.as<int32_t>()[8];
  EXPECT_THAT(truth.why_wrong(x, {}, ids, weights), HasSubstr("token 2"));
  ids.as<int32_t>()[9] = kept;
}

TEST_P(RouterTruthOf, AcceptsEitherSideOfATie) {
  const cli::RouterTruth truth(spec_, weights_.router);
  ASSERT_TRUE(truth.can_tie());
  Random random(6);
  const Buffer x = Buffer::normal(random, DataType::kF32, {16, 80});
  truth.make_near_ties(x);
  const auto logits = truth.logits(x);
  const auto exact = truth.choose(logits.values, {});
  const auto ranked = truth.choose(logits.values, {}, 1);
  // Rounding that favours the first expert left out, four ulps of its logit and no more.
  std::vector<double> rounded = logits.values;
  for (int64_t t = 0; t < 16; ++t) {
    double& logit = rounded[static_cast<size_t>(t * 32 + ranked.ids.as<int32_t>()[t * 5 + 4])];
    logit += std::abs(logit) * 0x1p-21;
  }
  const auto other = truth.choose(rounded, {});
  int num_ties = 0;
  for (int64_t t = 0; t < 16; ++t) {
    const auto row = [t](const cli::HostTensor& ids) {
      return std::set<int32_t>(ids.as<int32_t>() + t * 4, ids.as<int32_t>() + t * 4 + 4);
    };
    num_ties += row(exact.ids) != row(other.ids) ? 1 : 0;
  }
  // With groups the first expert left out by rank need not be the one that would come in.
  EXPECT_GE(num_ties, spec_.routing.num_groups > 1 ? 8 : 12);
  EXPECT_EQ(truth.why_wrong(x, {}, exact.ids.view(), exact.weights.view()), "");
  EXPECT_EQ(truth.why_wrong(x, {}, other.ids.view(), other.weights.view()), "");
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, RouterTruthOf,
    ::testing::Values(RouterCase{"softmax", {}},
                      RouterCase{"plain_softmax", {.renormalize = false}},
                      RouterCase{"gpt_oss", {}, true},
                      RouterCase{"sigmoid_bias", {.scoring = Scoring::kSigmoid}, false, true},
                      RouterCase{"deepseek",
                                 {.scoring = Scoring::kSigmoid,
                                  .num_groups = 4,
                                  .topk_groups = 2,
                                  .routed_scaling_factor = 2.5f},
                                 false,
                                 true},
                      RouterCase{"sqrt_softplus", {.scoring = Scoring::kSqrtSoftplus}, false, true},
                      RouterCase{"normed_input", {}, false, false, true}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace switchyard::test
