// The shipped fixtures (fixtures/README.md): every family and weight format, from the checkpoint to
// the output of the transformers package's own MoE block, on every backend and ISA level.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/temp_dir.h"
#include "support/buffer.h"
#include "support/fixture.h"
#include "switchyard/layer.h"
#include "switchyard/verify.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::as_type;
using test::Buffer;
using test::Fixture;
using test::GuardedMemory;

struct Result {
  Buffer output, topk_ids, topk_weights;
};

Result forward(const Fixture& fixture, const Layer& layer, DataType type) {
  const int64_t tokens = fixture.topk_ids.extent(0);
  const Buffer hidden_states = as_type(fixture.hidden_states, type);
  Result result{.output = Buffer(type, {tokens, layer.spec().hidden_size}),
                .topk_ids = Buffer(DataType::kI32, {tokens, layer.spec().top_k}),
                .topk_weights = Buffer(DataType::kF32, {tokens, layer.spec().top_k})};
  const GuardedMemory workspace(layer.workspace_bytes(tokens));
  layer.forward({.hidden_states = hidden_states,
                 .output = result.output,
                 .input_ids = fixture.input_ids,
                 .topk_ids_out = result.topk_ids,
                 .topk_weights_out = result.topk_weights},
                workspace.workspace());
  EXPECT_TRUE(workspace.canaries_intact() && result.output.canaries_intact());
  return result;
}

Layer create(const Fixture& fixture, const LayerSpec& spec, const LayerOptions& options) {
  return Layer::create(spec, fixture.checkpoint.weights(fixture.index), options);
}

double rms_error(const Result& result, const Fixture& fixture) {
  const Comparison comparison = compare(result.output, fixture.output);
  EXPECT_EQ(comparison.num_nan, 0);
  return comparison.rms_error;
}

/// Ids with their weights, in ascending order: transformers does not define the order in a row.
void expect_same_routing(const Result& result, const Fixture& fixture) {
  const int64_t top_k = fixture.topk_ids.extent(1);
  ASSERT_EQ(result.topk_ids.view().extent(1), top_k);
  const auto row = [&](const int32_t* ids, const float* weights, int64_t token) {
    std::vector<std::pair<int32_t, float>> pairs;
    for (int64_t i = token * top_k; i < (token + 1) * top_k; ++i) {
      pairs.emplace_back(ids[i], weights[i]);
    }
    std::sort(pairs.begin(), pairs.end());
    return pairs;
  };
  for (int64_t token = 0; token < fixture.topk_ids.extent(0); ++token) {
    const auto ours = row(result.topk_ids.as<int32_t>(), result.topk_weights.as<float>(), token);
    const auto theirs =
        row(fixture.topk_ids.as<int32_t>(), fixture.topk_weights.as<float>(), token);
    for (size_t k = 0; k < ours.size(); ++k) {
      EXPECT_EQ(ours[k].first, theirs[k].first) << "token " << token;
      EXPECT_NEAR(ours[k].second, theirs[k].second, 1e-5 * theirs[k].second) << "token " << token;
    }
  }
}

class FixtureTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FixtureTest, EveryTensorOfTheLayerIsAccountedFor) {
  const Fixture fixture(GetParam());
  const std::vector<int64_t>& layers = fixture.checkpoint.moe_layers();
  EXPECT_TRUE(std::find(layers.begin(), layers.end(), fixture.index) != layers.end());
  const CheckpointLayer layer = fixture.checkpoint.inspect(fixture.index);
  EXPECT_THAT(layer.coverage.unknown, ::testing::IsEmpty());
  EXPECT_THAT(layer.coverage.missing, ::testing::IsEmpty());
  EXPECT_GE(layer.coverage.used, 3);
  EXPECT_EQ(layer.spec.hidden_size, fixture.output.extent(1));
  EXPECT_EQ(layer.spec.top_k, fixture.topk_ids.extent(1));
}

// The reference computes in double on the stored weights, so only f32 routing weights on both sides
// and f32 outputs differ: measured 2e-8 to 1e-7.
TEST_P(FixtureTest, ReferenceComputesWhatTransformersDoes) {
  const Fixture fixture(GetParam());
  const LayerSpec spec = fixture.checkpoint.layer(fixture.index).spec;
  const Layer layer = create(fixture, spec, {.backend = BackendKind::kReference});
  const Result result = forward(fixture, layer, DataType::kF32);
  expect_same_routing(result, fixture);
  const double error = rms_error(result, fixture);
  EXPECT_LT(error, 5e-7);
  RecordProperty("reference_rms", fmt::format("{:.2e}", error));
  std::puts(fmt::format("{:<40} reference    f32 {:.1e}", GetParam(), error).c_str());
}

TEST_P(FixtureTest, EveryIsaLevelComputesWhatTransformersDoes) {
  const Fixture fixture(GetParam());
  LayerSpec spec = fixture.checkpoint.layer(fixture.index).spec;
  for (const char* isa : {"avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"}) {
    SCOPED_TRACE(isa);
    const LayerOptions options{.backend = BackendKind::kCpu, .num_threads = 2, .cpu_isa = isa};
    try {
      spec.activation_format = ActivationFormat::kNone;
      const Layer exact = create(fixture, spec, options);
      const Result f32 = forward(fixture, exact, DataType::kF32);
      expect_same_routing(f32, fixture);
      const double f32_error = rms_error(f32, fixture);
      const double bf16_error = rms_error(forward(fixture, exact, DataType::kBf16), fixture);
      EXPECT_LT(f32_error, 2e-6);   // measured 1e-7 to 4e-7
      EXPECT_LT(bf16_error, 4e-3);  // 1.7e-3 of it is the rounding of the output itself

      spec.activation_format = ActivationFormat::kAuto;
      const Layer fast = create(fixture, spec, options);
      const Result quantised = forward(fixture, fast, DataType::kF32);
      expect_same_routing(quantised, fixture);
      const double fast_error = rms_error(quantised, fixture);
      const ErrorBound bound = error_bound(fast.spec(), BackendKind::kCpu, DataType::kF32);
      EXPECT_LT(fast_error, bound.rms) << bound.derivation;
      const std::string line = fmt::format("f32 {:.1e}  bf16 {:.1e}  own activations {:.1e}",
                                           f32_error, bf16_error, fast_error);
      RecordProperty(fmt::format("rms_{}", isa), line);
      std::puts(fmt::format("{:<40} {:<12} {}", GetParam(), isa, line).c_str());
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
    }
  }
}

/// A wrong reading of the routing, and whether the layer has anything to misread.
struct Misreading {
  const char* what;
  std::function<bool(const LayerSpec&)> applies;
  std::function<void(LayerSpec&, Weights&)> make;
};

const std::vector<Misreading>& misreadings() {
  static const std::vector<Misreading> all = {
      {"renormalisation", [](const LayerSpec&) { return true; },
       [](LayerSpec& s, Weights&) { s.routing.renormalize = !s.routing.renormalize; }},
      {"scaling factor", [](const LayerSpec&) { return true; },
       [](LayerSpec& s, Weights&) { s.routing.routed_scaling_factor *= 1.25f; }},
      {"groups", [](const LayerSpec& s) { return s.routing.num_groups > 1; },
       [](LayerSpec& s, Weights&) { s.routing.num_groups = s.routing.topk_groups = 1; }},
      {"activation", [](const LayerSpec& s) { return s.activation.gated(); },
       [](LayerSpec& s, Weights&) {
         s.activation.kind =
             s.activation.kind == Activation::kSwiGlu ? Activation::kGeGlu : Activation::kSwiGlu;
       }},
      {"gate and up", [](const LayerSpec& s) { return s.activation.gated(); },
       [](LayerSpec&, Weights& w) {
         w.experts.load = [load = w.experts.load](int64_t expert) {
           ExpertWeights swapped = load(expert);
           std::swap(swapped.gate, swapped.up);
           return swapped;
         };
       }},
      {"position of the weight", [](const LayerSpec&) { return true; },
       [](LayerSpec& s, Weights&) {
         s.weight_position = s.weight_position == WeightPosition::kInput ? WeightPosition::kOutput
                                                                         : WeightPosition::kInput;
       }},
  };
  return all;
}

// A fixture that a wrong implementation would pass as well proves nothing.
TEST_P(FixtureTest, WouldNoticeAMisreadLayer) {
  const Fixture fixture(GetParam());
  const LayerSpec spec = fixture.checkpoint.layer(fixture.index).spec;
  for (const Misreading& misreading : misreadings()) {
    if (!misreading.applies(spec)) continue;
    SCOPED_TRACE(misreading.what);
    LayerSpec wrong = spec;
    Weights weights = fixture.checkpoint.weights(fixture.index);
    misreading.make(wrong, weights);
    const Layer layer = Layer::create(wrong, weights, {.backend = BackendKind::kReference});
    const Result result = forward(fixture, layer, DataType::kF32);
    EXPECT_GT(compare(result.output, fixture.output).rms_error, 1e-3);
  }
}

/// The name without its indices, so that one tensor of each kind is tried.
std::string kind_of(const std::string& name) {
  return std::regex_replace(name, std::regex("[.][0-9]+[.]"), ".#.");
}

/// Gemma-4's block has no name of its own: its prefix is the layer's.
bool belongs_to_block(const std::string& name, const std::string& prefix) {
  if (!name.starts_with(prefix)) return false;
  const std::string rest = name.substr(prefix.size());
  const bool nameless = std::regex_search(prefix, std::regex("layers[.][0-9]+[.]$"));
  return !nameless || rest.starts_with("router.") || rest.starts_with("experts.");
}

bool weights_do_without(const std::string& name) {
  return name.ends_with("input_scale") || name.ends_with("input_global_scale") ||
         name.ends_with("weight_shape");
}

// Fail closed: a block from which any tensor has been lost is refused, not computed without it.
TEST_P(FixtureTest, RefusesALayerThatLostATensor) {
  const fs::path directory = (test::fixture_folder() / GetParam()).parent_path();
  const Fixture fixture(GetParam());
  const CheckpointLayer layer = fixture.checkpoint.layer(fixture.index);
  const std::vector<std::string>& ignored = layer.coverage.ignored_names;
  const Safetensors files = Safetensors::open(directory.string());
  const testing::TempDir lossy;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name.find("safetensors") == std::string::npos) fs::copy(entry, lossy.path() / name);
  }
  std::set<std::string> kinds;
  for (const CheckpointTensor& lost : files.tensors()) {
    const bool is_ignored = std::find(ignored.begin(), ignored.end(), lost.name) != ignored.end();
    if (!belongs_to_block(lost.name, layer.prefix) || is_ignored) continue;
    if (weights_do_without(lost.name)) continue;
    if (!kinds.insert(kind_of(lost.name)).second) continue;
    SCOPED_TRACE(lost.name);
    std::vector<NamedTensor> kept;
    for (const CheckpointTensor& tensor : files.tensors()) {
      if (tensor.name != lost.name) kept.push_back({tensor.name, tensor.view});
    }
    save_safetensors(lossy.file("model.safetensors"), kept);
    const Checkpoint checkpoint = Checkpoint::open(lossy.path().string());
    try {
      checkpoint.layer(fixture.index);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidFile) << error.what();
    }
  }
  EXPECT_GE(kinds.size(), 3u);
}

// Without the clamp DeepSeek-V4's output is off by a third, and nothing else would show it.
TEST(FixtureConfig, DeepseekV4NeedsItsClamp) {
  const fs::path directory = test::fixture_folder() / "deepseek_v4";
  std::ifstream file(directory / "config.json");
  const nlohmann::json config = nlohmann::json::parse(file);
  const testing::TempDir changed;
  fs::copy(directory / "model.safetensors", changed.path());
  for (const nlohmann::json& limit : {nlohmann::json(), nlohmann::json(0), nlohmann::json(-1)}) {
    nlohmann::json without = config;
    without["swiglu_limit"] = limit;
    std::ofstream(changed.path() / "config.json") << without;
    try {
      Checkpoint::open(changed.path().string()).layer(1);
      ADD_FAILURE() << limit << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidFile) << error.what();
      EXPECT_NE(std::string(error.what()).find("swiglu_limit"), std::string::npos);
    }
  }
}

std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
  return test::fixture_name(info.param);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, FixtureTest, ::testing::ValuesIn(test::fixture_files()),
                         test_name);

TEST(FixtureList, NoneIsMissing) {
  const std::set<std::string> needed = {
      "deepseek_v3",  "deepseek_v3_fp8", "deepseek_v4",     "ernie4_5_moe",    "gemma4",
      "glm4_moe",     "glm4_moe_fp8",    "glm4_moe_nvfp4",  "gpt_oss",         "gpt_oss_mxfp4",
      "granite_moe",  "hunyuan_moe",     "hy_v3",           "kimi_k2_int4",    "kimi_linear",
      "lfm2_moe",     "llama4",          "minimax_m2",      "minimax_m3",      "mixtral",
      "mixtral_fp8",  "mixtral_int4_zp", "nemotron_h",      "olmoe",           "qwen2_moe",
      "qwen3_5_moe",  "qwen3_moe",       "qwen3_moe_nvfp4", "qwen3_moe_quark", "qwen3_next",
      "qwen3_vl_moe",
  };
  std::set<std::string> found;
  for (const std::string& file : test::fixture_files()) {
    found.insert(fs::path(file).parent_path().string());
  }
  EXPECT_EQ(found, needed);
  EXPECT_EQ(test::fixture_files().size(), needed.size() + 1);  // deepseek_v4 has two layers
}

}  // namespace
}  // namespace switchyard
