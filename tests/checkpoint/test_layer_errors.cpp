// What a layer with missing, extra, contradicting or damaged tensors gets: an error that names it.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "checkpoint/expect_error.h"
#include "checkpoint/tiny_layers.h"
#include "switchyard/checkpoint.h"

namespace switchyard {
namespace {

using namespace ::switchyard::testing;  // NOLINT: the helpers of these tests
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

const FamilyNames kNames{.block = "model.layers.1.mlp.",
                         .shared = "shared_experts.",
                         .selection_bias = "gate.e_score_correction_bias"};

/// A DeepSeek-V3-like layer 1 of 4.
TinyModel deepseek(Stored stored) {
  TinyModel model;
  model.config = base_config("deepseek_v3");
  model.config.update({{"n_routed_experts", kExperts},
                       {"moe_intermediate_size", kInner},
                       {"routed_scaling_factor", 2.5},
                       {"n_shared_experts", 1},
                       {"num_hidden_layers", 2},
                       {"first_k_dense_replace", 1}});
  add_experts(model, kNames, stored);
  return model;
}

Coverage inspect(const TinyModel& model) {
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const Coverage coverage = checkpoint.inspect(1).coverage;
  if (!coverage.complete()) {
    expect_error(ErrorCode::kInvalidFile, "layer 1: tensors", [&] { checkpoint.layer(1); });
    expect_error(ErrorCode::kInvalidFile, "layer 1: tensors", [&] { checkpoint.weights(1); });
  }
  return coverage;
}

/// layer(), weights() and the loading of every expert; one of them must throw.
void expect_layer_error(const TinyModel& model, const std::string& text,
                        ErrorCode code = ErrorCode::kInvalidFile) {
  const TempDir dir;
  model.write(dir);
  expect_error(code, text, [&] {
    const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
    checkpoint.layer(1);
    const Weights weights = checkpoint.weights(1);
    for (int64_t e = 0; e < weights.experts.num_experts; ++e) weights.experts.load(e);
  });
}

TEST(Coverage, EveryTensorThatIsTakenAwayIsMissed) {
  for (const Stored stored : {Stored::kBf16, Stored::kFp8Block, Stored::kNvfp4ModelOpt,
                              Stored::kInt4PackedZero, Stored::kGptq}) {
    const TinyModel whole = deepseek(stored);
    for (const std::string& name : whole.names()) {
      // Zero points and groups may be absent in compressed-tensors; these lines do not matter to
      // any value.
      const bool optional = name.ends_with("_zero_point") || name.ends_with("g_idx") ||
                            name.ends_with("weight_shape") || name.ends_with("input_scale");
      if (optional) continue;
      SCOPED_TRACE(name);
      TinyModel model = whole;
      model.remove(name);
      const Coverage coverage = inspect(model);
      ASSERT_FALSE(coverage.complete());
    }
  }
}

TEST(Coverage, GptOssNeedsItsBiases) {
  const std::string base = "model.layers.1.mlp.";
  TinyModel whole;
  whole.config = base_config("gpt_oss");
  whole.config.update({{"num_local_experts", kExperts}, {"intermediate_size", kInner}});
  whole.add_matrix(Stored::kBf16, base + "router", kExperts, kHidden);
  whole.add_vector(base + "router.bias", kExperts);
  add_stack(whole, base + "experts.gate_up_proj", 2 * kInner, kHidden, true);
  add_stack(whole, base + "experts.down_proj", kHidden, kInner, true);
  whole.floats(base + "experts.gate_up_proj_bias", Stored::kBf16, {kExperts, 2 * kInner}, kExperts,
               2 * kInner);
  whole.floats(base + "experts.down_proj_bias", Stored::kBf16, {kExperts, kHidden}, kExperts,
               kHidden);
  EXPECT_TRUE(inspect(whole).complete());
  for (const std::string& name : whole.names()) {
    TinyModel model = whole;
    model.remove(name);
    const std::vector<std::string> missing = inspect(model).missing;
    ASSERT_FALSE(missing.empty()) << name;
    const bool router = name == base + "router.weight";
    const size_t tail = name.ends_with("_bias") ? std::string_view("_bias").size() : 0;
    EXPECT_THAT(missing.front(),
                HasSubstr(router ? "the router" : name.substr(0, name.size() - tail)));
  }
}

TEST(Coverage, MissingTensorsAreNamedLikeTheirSiblings) {
  TinyModel model = deepseek(Stored::kFp8Block);
  model.remove("model.layers.1.mlp.experts.2.up_proj.weight");
  model.remove("model.layers.1.mlp.experts.3.down_proj.weight_scale_inv");
  model.remove("model.layers.1.mlp.gate.e_score_correction_bias");
  model.remove("model.layers.1.mlp.shared_experts.up_proj.weight");
  EXPECT_THAT(inspect(model).missing,
              UnorderedElementsAre("model.layers.1.mlp.experts.2.up_proj.weight",
                                   "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv",
                                   "the scale of model.layers.1.mlp.experts.3.down_proj.weight",
                                   "model.layers.1.mlp.gate.e_score_correction_bias",
                                   "model.layers.1.mlp.shared_experts.up_proj.weight"));
}

TEST(Coverage, TensorsThatNothingReadsAreErrors) {
  const Bytes bytes(8);
  const std::vector<std::string> strangers{
      "model.layers.1.mlp.gate.weight_extra",
      "model.layers.1.mlp.experts.0.gate_proj.lora_A",
      "model.layers.1.mlp.experts.0.side_proj.weight",
      "model.layers.1.mlp.experts.4.gate_proj.weight",
      "model.layers.1.mlp.experts.07.gate_proj.weight",
      "model.layers.1.mlp.experts.-1.gate_proj.weight",
      "model.layers.1.mlp.experts.99999999999999999999.gate_proj.weight",
      "model.layers.1.mlp.router.weight",
      "model.layers.1.mlp.gate.bias",
      "model.layers.1.mlp.experts.0.gate_proj.qweight",
      "model.layers.1.mlp.experts.1.gate_proj.weight_scale",
      "model.layers.1.mlp.shared_experts.gate_proj.weight_zero_point",
      "model.layers.1.feed_forward.experts.0.gate_proj.weight",
  };
  for (const std::string& name : strangers) {
    SCOPED_TRACE(name);
    TinyModel model = deepseek(Stored::kBf16);
    model.add(name, "F32", {2}, bytes);
    const Coverage coverage = inspect(model);
    ASSERT_FALSE(coverage.unknown.empty());
    EXPECT_THAT(coverage.unknown.front(), HasSubstr(name));
  }
}

TEST(Coverage, AttentionNormsAndOtherLayersDoNotMatter) {
  TinyModel model = deepseek(Stored::kFp8Tensor);
  for (const char* name : {"model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight",
                           "model.layers.1.input_layernorm.weight", "lm_head.weight",
                           "model.layers.0.mlp.gate_proj.weight", "mtp.layers.0.mlp.gate.weight",
                           "model.layers.2.mlp.experts.0.gate_proj.weight"}) {
    model.add(name, "F32", {1}, Bytes(4));
  }
  const Coverage coverage = inspect(model);
  EXPECT_TRUE(coverage.complete());
  EXPECT_EQ(coverage.ignored, 3 * kExperts);
  EXPECT_EQ(coverage.used, 1 + 1 + 3 + 3 * kExperts * 2);
}

TEST(Coverage, ListsAreBounded) {
  TinyModel model = deepseek(Stored::kBf16);
  for (int i = 0; i < 500; ++i) {
    model.add(fmt::format("model.layers.1.mlp.stranger{}", i), "F32", {1}, Bytes(4));
  }
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  try {
    checkpoint.layer(1);
    FAIL();
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_LT(message.size(), 1000u);
    EXPECT_THAT(message, HasSubstr("500 not understood"));
    EXPECT_THAT(message, HasSubstr("and 488 more"));
  }
}

TEST(MoeLayers, AreThoseOfConfigAndTensorsWithoutPrediction) {
  TinyModel model = deepseek(Stored::kBf16);
  model.config["num_hidden_layers"] = 4;
  FamilyNames names = kNames;
  names.block = "model.layers.4.mlp.";  // DeepSeek keeps its prediction layer here
  add_experts(model, names, Stored::kBf16);
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  EXPECT_EQ(checkpoint.model_type(), "deepseek_v3");
  EXPECT_EQ(checkpoint.num_hidden_layers(), 4);
  EXPECT_THAT(checkpoint.moe_layers(), ElementsAre(1, 2, 3));
  EXPECT_TRUE(checkpoint.layer(1).coverage.complete());
  // Layer 2 is MoE by config.json, but the file has nothing of it.
  const Coverage coverage = checkpoint.inspect(2).coverage;
  EXPECT_FALSE(coverage.missing.empty());
  for (const int64_t layer : {int64_t{0}, int64_t{4}, int64_t{-1}, int64_t{1} << 40}) {
    expect_error(ErrorCode::kInvalidArgument, "the MoE layers are 1, 2, 3",
                 [&] { checkpoint.layer(layer); });
  }
}

TEST(MoeLayers, TwoTextModelsAreRefused) {
  TinyModel model = deepseek(Stored::kBf16);
  FamilyNames names = kNames;
  names.block = "language_model.model.layers.1.mlp.";
  add_experts(model, names, Stored::kBf16);
  expect_layer_error(model, "only one text model", ErrorCode::kUnsupported);
}

TEST(Conflicts, PrintBothSides) {
  struct Row {
    std::string key;
    nlohmann::json value;
    std::string message;
  };
  const std::vector<Row> rows{
      {"n_routed_experts", 8, "n_routed_experts is 8; layer 1 says 4, by model.layers.1.mlp.gate"},
      {"hidden_size", 128, "hidden_size is 128; layer 1 says 136"},
      {"moe_intermediate_size", 64, "moe_intermediate_size is 64; layer 1 says 72"},
      {"n_shared_experts", 2, "n_shared_experts * moe_intermediate_size is 144; layer 1 says 72"},
      {"first_k_dense_replace", 2, "layer 1 is dense; layer 1 says MoE"},
      {"hidden_act", "relu2", "hidden_act is relu2; layer 1 says a gate matrix exists"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.key);
    TinyModel model = deepseek(Stored::kBf16);
    model.config[row.key] = row.value;
    expect_layer_error(model, row.message);
  }
  TinyModel blocks = deepseek(Stored::kFp8Block32);
  blocks.config["quantization_config"] = {{"quant_method", "fp8"},
                                          {"weight_block_size", {128, 128}}};
  expect_layer_error(blocks, "contradict config.json's block of 128");
  TinyModel groups = deepseek(Stored::kInt4Packed);
  groups.config["quantization_config"] = nlohmann::json::parse(
      R"({"quant_method":"compressed-tensors","config_groups":{"group_0":{"weights":
          {"num_bits":4,"type":"int","strategy":"group","group_size":64}}}})");
  expect_layer_error(groups, "contradict config.json's block of 64");
  TinyModel bits = deepseek(Stored::kInt4Packed);
  bits.config["quantization_config"] = nlohmann::json::parse(
      R"({"quant_method":"compressed-tensors","config_groups":{"group_0":{"weights":
          {"num_bits":8,"type":"int","strategy":"channel"}}}})");
  expect_layer_error(bits, "config.json says 8 bits");
}

TEST(Shapes, AndTypesAreCheckedBeforeAnyByteIsRead) {
  const std::string gate1 = "model.layers.1.mlp.experts.1.gate_proj.weight";
  {
    TinyModel model = deepseek(Stored::kBf16);
    model.shape(gate1) = {kHidden, kInner};
    expect_layer_error(model,
                       gate1 + " is BF16 [136, 72]; holds [136, 72] values, must hold [72, 136]");
  }
  {
    TinyModel model = deepseek(Stored::kBf16);
    model.shape(gate1) = {kInner * kHidden};
    expect_layer_error(model, "must have 2 dimensions");
  }
  {
    TinyModel model = deepseek(Stored::kBf16);
    model.dtype(gate1) = "F16";
    expect_layer_error(model, "all experts must be stored alike", ErrorCode::kUnsupported);
  }
  {
    TinyModel model = deepseek(Stored::kBf16);
    model.dtype(gate1) = "I16";
    expect_layer_error(model, "not a dtype that weights have");
  }
  {
    TinyModel model = deepseek(Stored::kBf16);
    const std::string bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    model.dtype(bias) = "I32";
    expect_layer_error(model, bias + " is I32 [4]; must hold 4 aligned F32, F16 or BF16 values");
  }
  {
    TinyModel model = deepseek(Stored::kFp8Block);
    model.shape("model.layers.1.mlp.experts.0.up_proj.weight_scale_inv") = {2, 1};
    expect_layer_error(model, "all experts must be stored alike", ErrorCode::kUnsupported);
  }
  {
    TinyModel model = deepseek(Stored::kMxfp4Quark);
    const std::string scale = "model.layers.1.mlp.experts.0.up_proj.weight_scale";
    model.shape(scale) = {model.shape(scale)[1], model.shape(scale)[0]};
    expect_layer_error(model, "one scale per 32 of [72, 136]");
  }
  {
    TinyModel model = deepseek(Stored::kGptq);
    const std::string zeros = "model.layers.1.mlp.experts.0.up_proj.qzeros";
    model.shape(zeros) = {model.shape(zeros)[1], model.shape(zeros)[0]};
    expect_layer_error(model, "zero points must be I32 [5, 9]");
  }
  {
    TinyModel model = deepseek(Stored::kBf16);
    model.add("model.layers.1.mlp.experts.0.up_proj.bias", "BF16", {kInner - 1},
              Bytes(2 * (kInner - 1)));
    for (int64_t e = 1; e < kExperts; ++e) {
      model.add(fmt::format("model.layers.1.mlp.experts.{}.up_proj.bias", e), "BF16", {kInner},
                Bytes(2 * kInner));
    }
    expect_layer_error(model, "a bias must be F32, F16 or BF16 with 72 values");
  }
}

/// Overwrites element `index` of `bytes` wide elements.
void put(Bytes& data, size_t index, const Bytes& bytes) {
  std::copy(bytes.begin(), bytes.end(),
            data.begin() + static_cast<std::ptrdiff_t>(index * bytes.size()));
}

TEST(DamagedScales, AreNamedWithExpertAndPosition) {
  struct Row {
    Stored stored;
    const char* part;
    size_t index;
    Bytes bytes;
    std::string message;
  };
  // Scales of gate [72, 136]: element 7 of five to a row is [1, 2].
  const std::vector<Row> rows{
      {Stored::kMxfp4Quark, "weight_scale", 7, {255}, "the scale at [1, 2] is NaN"},
      {Stored::kMxfp4I8, "scale", 7, {255}, "the scale at [1, 2] is NaN"},
      {Stored::kMxfp8, "weight_scale_inv", 0, {255}, "the scale at [0, 0] is NaN"},
      {Stored::kFp8Block, "weight_scale_inv", 1, {0, 0, 0xc0, 0x7f}, "the scale at [0, 1] is NaN"},
      {Stored::kFp8Block, "weight_scale_inv", 1, {0, 0, 0x80, 0x7f}, "the scale at [0, 1] is NaN"},
      {Stored::kFp8Channel, "weight_scale", 71, {0xc0, 0xff}, "the scale at [71, 0] is NaN"},
      {Stored::kFp8Tensor, "weight_scale", 0, {1, 0, 0x80, 0x7f}, "the scale at [0, 0] is NaN"},
      {Stored::kNvfp4ModelOpt, "weight_scale", 9, {0xff}, "the scale at [1, 0] is NaN"},
      {Stored::kNvfp4ModelOpt, "weight_scale_2", 0, {0, 0, 0xc0, 0x7f}, "the global scale is nan"},
      {Stored::kNvfp4Packed, "weight_global_scale", 0, {0, 0, 0, 0}, "the global scale is 0"},
      {Stored::kInt4Packed, "weight_scale", 7, {0xc0, 0x7f}, "the scale at [1, 2] is NaN"},
      {Stored::kGptq, "scales", 73, {0, 0x7e}, "the scale at [1, 1] is NaN"},
      {Stored::kGptq, "g_idx", 3, {5, 0, 0, 0}, "the group of column 3 is 5; there are 5 groups"},
      {Stored::kInt4PackedOrder,
       "weight_g_idx",
       3,
       {0xff, 0xff, 0xff, 0xff},
       "the group of column 3 is -1"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.message);
    TinyModel model = deepseek(row.stored);
    const std::string name = fmt::format("model.layers.1.mlp.experts.2.gate_proj.{}", row.part);
    put(model.data(name), row.index, row.bytes);
    expect_layer_error(model, fmt::format("{}, expert 2: {}", name, row.message));
  }
}

TEST(DamagedTables, ExpertIdsOutOfRangeAreNamed) {
  TinyModel model;
  model.config = base_config("deepseek_v4");
  model.config.update({{"n_routed_experts", kExperts},
                       {"moe_intermediate_size", kInner},
                       {"routed_scaling_factor", 1.5},
                       {"swiglu_limit", 10.0},
                       {"num_hash_layers", 2}});
  add_experts(model, {.block = "layers.1.ffn.", .gate = "w1", .up = "w3", .down = "w2"},
              Stored::kBf16);
  model.add_integers("layers.1.ffn.gate.tid2eid", "I64", {3, kTopK}, {0, 1, 3, 4, 1, 0});
  expect_layer_error(model, "layers.1.ffn.gate.tid2eid: entry [1, 1] is 4; must be in [0, 4)");
  model.add_integers("layers.1.ffn.gate.tid2eid", "I64", {2, 3}, {0, 1, 3, 2, 1, 0});
  expect_layer_error(model, "num_experts_per_tok is 2; layer 1 says 3");
  model.add_integers("layers.1.ffn.gate.tid2eid", "I32", {3, kTopK}, {0, 1, 3, -1, 1, 0});
  expect_layer_error(model, "entry [1, 1] is -1");
}

TEST(Directories, WithoutConfigOrWithoutTensors) {
  const TempDir dir;
  expect_error(ErrorCode::kInvalidFile, "config.json: cannot open",
               [&] { Checkpoint::open(dir.path().string()); });
  expect_error(ErrorCode::kInvalidFile, "is no directory",
               [&] { Checkpoint::open(dir.file("absent")); });
  write_text(dir.file("config.json"), "{}");
  expect_error(ErrorCode::kInvalidFile, "holds neither",
               [&] { Checkpoint::open(dir.path().string()); });
  write_text(dir.file("m.gguf"), "GGUF");
  expect_error(ErrorCode::kUnsupported, "only safetensors checkpoints can be read",
               [&] { Checkpoint::open(dir.path().string()); });
}

TEST(Directories, ADenseModelHasNoMoeLayers) {
  TinyModel model;
  model.config = {{"model_type", "llama"}, {"num_hidden_layers", 2}};
  model.add_matrix(Stored::kBf16, "model.layers.0.mlp.gate_proj", 4, 4);
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  EXPECT_TRUE(checkpoint.moe_layers().empty());
  expect_error(ErrorCode::kInvalidArgument, "has no MoE layer", [&] { checkpoint.layer(0); });
}

}  // namespace
}  // namespace switchyard
