// Every naming family in every stored format: the decoded weights are the numbers that were stored.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "checkpoint/tiny_layers.h"
#include "core/weight_matrix.h"
#include "switchyard/checkpoint.h"
#include "switchyard/error.h"

namespace switchyard {
namespace {

using namespace ::switchyard::testing;  // NOLINT: the helpers of these tests

/// Compares element by element; `tolerance` is relative and 0 but for divisors.
void expect_matrix(const WeightMatrix& matrix, const Truth& truth, const std::string& label,
                   double tolerance = 0.0) {
  ASSERT_EQ(matrix.rows, truth.rows) << label;
  ASSERT_EQ(matrix.cols, truth.cols) << label;
  std::vector<float> row(static_cast<size_t>(truth.cols));
  for (int64_t r = 0; r < truth.rows; ++r) {
    decode_row(matrix, r, row.data());
    for (int64_t c = 0; c < truth.cols; ++c) {
      const double expected = truth.at(r, c);
      const double got = static_cast<double>(row[static_cast<size_t>(c)]);
      if (tolerance == 0.0) {
        ASSERT_EQ(row[static_cast<size_t>(c)], static_cast<float>(expected))
            << label << " [" << r << ", " << c << "]";
      } else {
        ASSERT_LE(std::abs(got - expected), tolerance * std::abs(expected))
            << label << " [" << r << ", " << c << "]";
      }
    }
  }
}

void expect_vector(const TensorView& view, const std::vector<double>& truth,
                   const std::string& label) {
  ASSERT_EQ(view.empty(), truth.empty()) << label;
  if (truth.empty()) return;
  ASSERT_EQ(view.rank, 1) << label;
  ASSERT_EQ(view.extent(0), static_cast<int64_t>(truth.size())) << label;
  for (int64_t i = 0; i < view.extent(0); ++i) {
    EXPECT_EQ(load_as_f32(view.data, view.type, i * view.stride(0)),
              static_cast<float>(truth[static_cast<size_t>(i)]))
        << label << " [" << i << "]";
  }
}

void expect_expert(const ExpertWeights& expert, const ExpertTruth& truth, const std::string& label,
                   double tolerance) {
  EXPECT_EQ(expert.gate.empty(), truth.gate.values.empty()) << label;
  if (!truth.gate.values.empty())
    expect_matrix(expert.gate, truth.gate, label + " gate", tolerance);
  expect_matrix(expert.up, truth.up, label + " up", tolerance);
  expect_matrix(expert.down, truth.down, label + " down", tolerance);
  expect_vector(expert.gate_bias, truth.gate_bias, label + " gate bias");
  expect_vector(expert.up_bias, truth.up_bias, label + " up bias");
  expect_vector(expert.down_bias, truth.down_bias, label + " down bias");
}

struct Expected {
  int64_t layer = 1;
  Format format = Format::kBf16;
  ScaleBlock block{};
  std::string family{};
  double tolerance = 0.0;
};

/// Writes, opens and compares everything; returns the layer for more questions.
CheckpointLayer expect_layer(const TinyModel& model, const LayerTruth& truth,
                             const Expected& expected) {
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const CheckpointLayer layer = checkpoint.layer(expected.layer);
  EXPECT_EQ(layer.spec.num_experts, kExperts);
  EXPECT_EQ(layer.spec.top_k, kTopK);
  EXPECT_EQ(layer.spec.hidden_size, kHidden);
  EXPECT_EQ(layer.spec.intermediate_size, kInner);
  EXPECT_EQ(layer.spec.weight_format, expected.format) << layer.weight_format;
  EXPECT_EQ(layer.spec.weight_scale_block.rows, expected.block.rows) << layer.weight_format;
  EXPECT_EQ(layer.spec.weight_scale_block.cols, expected.block.cols) << layer.weight_format;
  if (!expected.family.empty()) {
    EXPECT_EQ(layer.family.substr(0, 1), expected.family) << layer.family;
  }
  EXPECT_TRUE(layer.coverage.complete());
  const Weights weights = checkpoint.weights(expected.layer);
  EXPECT_EQ(weights.experts.num_experts, kExperts);
  expect_matrix(weights.router.projection, truth.router, "router");
  expect_vector(weights.router.selection_bias, truth.selection_bias, "selection bias");
  expect_vector(weights.router.logit_bias, truth.logit_bias, "logit bias");
  for (int64_t e = 0; e < kExperts; ++e) {
    expect_expert(weights.experts.load(e), truth.experts[static_cast<size_t>(e)],
                  fmt::format("expert {}", e), expected.tolerance);
    weights.experts.release(e);
  }
  // A released expert can be loaded again.
  expect_expert(weights.experts.load(0), truth.experts[0], "expert 0 again", expected.tolerance);
  EXPECT_EQ(layer.spec.shared.intermediate_size, truth.shared ? kInner : 0);
  if (truth.shared) expect_expert(weights.shared, *truth.shared, "shared", 0.0);
  return layer;
}

struct StoredCase {
  const char* name;
  Stored stored;
  Format format;
  ScaleBlock block;
  const char* quantization;  ///< quantization_config, or null
  double tolerance = 0.0;
};

constexpr const char* kGptqConfig = R"({"quant_method":"gptq","bits":4,"group_size":32})";

const StoredCase kStoredCases[] = {
    {"bf16", Stored::kBf16, Format::kBf16, {}, nullptr},
    {"f16", Stored::kF16, Format::kF16, {}, nullptr},
    {"f32", Stored::kF32, Format::kF32, {}, nullptr},
    {"fp8_block",
     Stored::kFp8Block,
     Format::kFp8E4m3,
     {128, 128},
     R"({"quant_method":"fp8","weight_block_size":[128,128]})"},
    {"fp8_block_by_shape", Stored::kFp8Block, Format::kFp8E4m3, {128, 128}, nullptr},
    {"fp8_block_e8m0",
     Stored::kFp8BlockE8m0,
     Format::kFp8E4m3,
     {128, 128},
     R"({"quant_method":"fp8","weight_block_size":[128,128],"scale_fmt":"ue8m0"})"},
    {"fp8_block_32", Stored::kFp8Block32, Format::kFp8E4m3, {32, 32}, nullptr},
    {"fp8_channel",
     Stored::kFp8Channel,
     Format::kFp8E4m3,
     {1, 0},
     R"({"quant_method":"compressed-tensors","format":"float-quantized","config_groups":
         {"group_0":{"weights":{"num_bits":8,"type":"float","strategy":"channel"}}}})"},
    {"fp8_tensor",
     Stored::kFp8Tensor,
     Format::kFp8E4m3,
     {},
     R"({"quant_method":"modelopt","quant_algo":"FP8"})"},
    {"fp8_e5m2", Stored::kFp8E5m2Channel, Format::kFp8E5m2, {1, 0}, nullptr},
    {"int8_channel", Stored::kInt8Channel, Format::kInt8, {1, 0}, nullptr},
    {"mxfp8",
     Stored::kMxfp8,
     Format::kMxfp8,
     {1, 32},
     R"({"quant_method":"fp8","weight_block_size":[1,32]})"},
    {"mxfp4_i8",
     Stored::kMxfp4I8,
     Format::kMxfp4,
     {1, 32},
     R"({"quant_method":"fp8","weight_block_size":[128,128],"expert_dtype":"fp4"})"},
    {"mxfp4_f4", Stored::kMxfp4F4, Format::kMxfp4, {1, 32}, nullptr},
    {"mxfp4_packed",
     Stored::kMxfp4Packed,
     Format::kMxfp4,
     {1, 32},
     R"({"quant_method":"compressed-tensors","format":"mxfp4-pack-quantized","config_groups":
         {"group_0":{"weights":{"num_bits":4,"type":"float","strategy":"group","group_size":32}}}})"},
    {"mxfp4_quark",
     Stored::kMxfp4Quark,
     Format::kMxfp4,
     {1, 32},
     R"({"quant_method":"quark","global_quant_config":{"weight":{"dtype":"fp4","group_size":32}}})"},
    {"nvfp4_modelopt",
     Stored::kNvfp4ModelOpt,
     Format::kNvfp4,
     {1, 16},
     R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16})"},
    // The reciprocal of the divisor and the product with it round once each.
    {"nvfp4_packed",
     Stored::kNvfp4Packed,
     Format::kNvfp4,
     {1, 16},
     R"({"quant_method":"compressed-tensors","format":"nvfp4-pack-quantized"})",
     0x1p-22},
    {"int4_packed",
     Stored::kInt4Packed,
     Format::kInt4,
     {1, 32},
     R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":
         {"group_0":{"weights":{"num_bits":4,"type":"int","strategy":"group","group_size":32}}}})"},
    {"int4_packed_zero",
     Stored::kInt4PackedZero,
     Format::kInt4,
     {1, 128},
     R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":
         {"group_0":{"weights":{"num_bits":4,"type":"int","strategy":"group","group_size":128}}}})"},
    {"int4_packed_order", Stored::kInt4PackedOrder, Format::kInt4, {1, 32}, nullptr},
    {"gptq", Stored::kGptq, Format::kInt4, {1, 32}, kGptqConfig},
    {"gptq_order", Stored::kGptqOrder, Format::kInt4, {1, 32}, kGptqConfig},
    {"gptq_v2",
     Stored::kGptqV2,
     Format::kInt4,
     {1, 32},
     R"({"quant_method":"gptq","bits":4,"group_size":32,"checkpoint_format":"gptq_v2"})"},
    {"awq",
     Stored::kAwq,
     Format::kInt4,
     {1, 128},
     R"({"quant_method":"awq","bits":4,"group_size":128,"version":"gemm","zero_point":true})"},
};

/// A family that stores expert by expert.
struct FamilyCase {
  const char* name;
  const char* letter;
  FamilyNames names;
  nlohmann::json config;
};

nlohmann::json with(nlohmann::json config, const nlohmann::json& more) {
  config.update(more);
  return config;
}

std::vector<FamilyCase> per_expert_families() {
  const nlohmann::json deepseek{{"n_routed_experts", kExperts},
                                {"moe_intermediate_size", kInner},
                                {"routed_scaling_factor", 2.5},
                                {"n_shared_experts", 1},
                                {"first_k_dense_replace", 1}};
  const FamilyNames w123{
      .block = "model.layers.1.block_sparse_moe.", .gate = "w1", .up = "w3", .down = "w2"};
  FamilyNames kimi = w123;
  kimi.shared = "shared_experts.";
  kimi.selection_bias = "gate.e_score_correction_bias";
  FamilyNames minimax = w123;
  minimax.selection_bias = "e_score_correction_bias";
  return {
      {"mixtral", "A", w123,
       with(base_config("mixtral"),
            {{"num_local_experts", kExperts}, {"intermediate_size", kInner}})},
      {"minimax_m2", "A", minimax,
       with(base_config("minimax_m2"), {{"num_local_experts", kExperts},
                                        {"intermediate_size", kInner},
                                        {"scoring_func", "sigmoid"},
                                        {"use_routing_bias", true}})},
      {"kimi_linear", "A", kimi,
       with(base_config("kimi_linear"), {{"num_experts", kExperts},
                                         {"moe_intermediate_size", kInner},
                                         {"moe_renormalize", true},
                                         {"moe_router_activation_func", "sigmoid"},
                                         {"num_shared_experts", 1},
                                         {"routed_scaling_factor", 2.446},
                                         {"num_experts_per_token", kTopK}})},
      {"lfm2",
       "B",
       {.block = "model.layers.1.feed_forward.",
        .gate = "w1",
        .up = "w3",
        .down = "w2",
        .selection_bias = "expert_bias"},
       with(base_config("lfm2_moe"), {{"num_experts", kExperts},
                                      {"moe_intermediate_size", kInner},
                                      {"num_dense_layers", 1},
                                      {"use_expert_bias", true}})},
      {"qwen3",
       "B",
       {.block = "model.layers.1.mlp."},
       with(base_config("qwen3_moe"), {{"num_experts", kExperts},
                                       {"moe_intermediate_size", kInner},
                                       {"norm_topk_prob", true},
                                       {"decoder_sparse_step", 1}})},
      {"deepseek_v3",
       "B",
       {.block = "model.layers.1.mlp.",
        .shared = "shared_experts.",
        .selection_bias = "gate.e_score_correction_bias"},
       with(base_config("deepseek_v3"), deepseek)},
      {"kimi_k25",
       "B",
       {.block = "language_model.model.layers.1.mlp.",
        .shared = "shared_experts.",
        .selection_bias = "gate.e_score_correction_bias"},
       {{"model_type", "kimi_k25"}, {"text_config", with(base_config("kimi_k2"), deepseek)}}},
      {"glm4v",
       "B",
       {.block = "model.language_model.layers.1.mlp.",
        .shared = "shared_experts.",
        .selection_bias = "gate.e_score_correction_bias"},
       {{"model_type", "glm4v_moe"},
        {"text_config", with(base_config("glm4v_moe_text"), deepseek)}}},
      {"ernie",
       "B",
       {.block = "model.layers.1.mlp.",
        .shared = "shared_experts.",
        .selection_bias = "moe_statics.e_score_correction_bias"},
       with(base_config("ernie4_5_moe"), {{"moe_num_experts", kExperts},
                                          {"moe_k", kTopK},
                                          {"moe_num_shared_experts", 1},
                                          {"moe_intermediate_size", kInner},
                                          {"moe_layer_start_index", 1}})},
      {"llama4_requantised",
       "B",
       {.block = "language_model.model.layers.1.feed_forward.",
        .router = "router",
        .shared = "shared_expert."},
       {{"model_type", "llama4"},
        {"text_config", with(base_config("llama4_text"), {{"num_local_experts", kExperts},
                                                          {"intermediate_size", kInner},
                                                          {"interleave_moe_layer_step", 1}})}}},
      {"deepseek_v4",
       "F",
       {.block = "layers.1.ffn.",
        .gate = "w1",
        .up = "w3",
        .down = "w2",
        .shared = "shared_experts.",
        .shared_gate = "w1",
        .shared_up = "w3",
        .shared_down = "w2",
        .selection_bias = "gate.bias"},
       with(base_config("deepseek_v4"), {{"n_routed_experts", kExperts},
                                         {"moe_intermediate_size", kInner},
                                         {"routed_scaling_factor", 1.5},
                                         {"n_shared_experts", 1},
                                         {"num_hash_layers", 1},
                                         {"scoring_func", "sqrtsoftplus"},
                                         {"swiglu_limit", 10.0}})},
      {"hunyuan",
       "B",
       {.block = "model.layers.1.mlp.", .router = "gate.wg", .shared = "shared_mlp."},
       with(base_config("hunyuan_v1_moe"),
            {{"num_experts", kExperts},
             {"moe_topk", {kTopK, kTopK, kTopK, kTopK}},
             {"moe_intermediate_size", {kInner, kInner, kInner, kInner}},
             {"num_shared_expert", {1, 1, 1, 1}}})},
      {"hy3",
       "B",
       {.block = "model.layers.1.mlp.",
        .router = "router.gate",
        .shared = "shared_mlp.",
        .selection_bias = "expert_bias"},
       with(base_config("hy_v3"), {{"num_experts", kExperts},
                                   {"moe_intermediate_size", kInner},
                                   {"num_shared_experts", 1},
                                   {"router_scaling_factor", 2.826},
                                   {"mlp_layer_types", {"dense", "sparse", "sparse", "sparse"}}})},
      {"nemotron",
       "G",
       {.block = "backbone.layers.1.mixer.",
        .shared = "shared_experts.",
        .selection_bias = "gate.e_score_correction_bias",
        .gated = false},
       {{"model_type", "nemotron_h"},
        {"hidden_size", kHidden},
        {"num_experts_per_tok", kTopK},
        {"mlp_hidden_act", "relu2"},
        {"hybrid_override_pattern", "MEM*-E"},
        {"n_routed_experts", kExperts},
        {"moe_intermediate_size", kInner},
        {"routed_scaling_factor", 2.5},
        {"n_shared_experts", 1},
        {"moe_shared_expert_intermediate_size", kInner}}},
  };
}

class PerExpert : public ::testing::TestWithParam<size_t> {};

TEST_P(PerExpert, DecodesToWhatWasStored) {
  const FamilyCase family = per_expert_families()[GetParam()];
  for (const StoredCase& row : kStoredCases) {
    SCOPED_TRACE(row.name);
    TinyModel model(GetParam() + 1);
    model.config = family.config;
    if (row.quantization != nullptr) {
      model.config["quantization_config"] = nlohmann::json::parse(row.quantization);
    }
    const LayerTruth truth = add_experts(model, family.names, row.stored);
    expect_layer(model, truth,
                 {.layer = 1,
                  .format = row.format,
                  .block = row.block,
                  .family = family.letter,
                  .tolerance = row.tolerance});
  }
}

INSTANTIATE_TEST_SUITE_P(AllFormats, PerExpert,
                         ::testing::Range(size_t{0}, per_expert_families().size()),
                         [](const auto& row) {
                           return std::string(per_expert_families()[row.param].name);
                         });

nlohmann::json qwen35_config() {
  return {{"model_type", "qwen3_5_moe"},
          {"text_config",
           with(base_config("qwen3_5_moe_text"), {{"num_experts", kExperts},
                                                  {"moe_intermediate_size", kInner},
                                                  {"shared_expert_intermediate_size", kInner}})}};
}

const std::string kQwen35Block = "model.language_model.layers.1.mlp.";

/// Router and gated shared expert of a Qwen3.5 layer.
LayerTruth qwen35_rest(TinyModel& model) {
  model.config = qwen35_config();
  LayerTruth truth;
  truth.router = model.add_matrix(Stored::kBf16, kQwen35Block + "gate", kExperts, kHidden);
  const std::string shared = kQwen35Block + "shared_expert.";
  truth.shared.emplace();
  truth.shared->gate = model.add_matrix(Stored::kBf16, shared + "gate_proj", kInner, kHidden);
  truth.shared->up = model.add_matrix(Stored::kBf16, shared + "up_proj", kInner, kHidden);
  truth.shared->down = model.add_matrix(Stored::kBf16, shared + "down_proj", kHidden, kInner);
  model.add_matrix(Stored::kBf16, kQwen35Block + "shared_expert_gate", 1, kHidden);
  return truth;
}

TEST(Fused, NMajorBf16) {
  TinyModel model;
  LayerTruth truth = qwen35_rest(model);
  const std::string base = kQwen35Block + "experts.";
  truth.experts = split_stacks(add_stack(model, base + "gate_up_proj", 2 * kInner, kHidden, false),
                               add_stack(model, base + "down_proj", kHidden, kInner, false), false);
  const CheckpointLayer layer = expect_layer(model, truth, {.family = "C"});
  EXPECT_TRUE(layer.spec.shared.sigmoid_gate);
  EXPECT_EQ(layer.prefix, kQwen35Block);
  EXPECT_EQ(layer.expert_bytes, 3 * kHidden * kInner * 2);
}

TEST(Fused, NMajorNvfp4WithOneGlobalScalePerHalf) {
  TinyModel model;
  LayerTruth truth = qwen35_rest(model);
  model.config["quantization_config"] = {{"quant_method", "modelopt"}, {"group_size", 16}};
  const std::string base = kQwen35Block + "experts.";
  const auto encode = [&](const std::string& name, int64_t halves) {
    return [&model, name, halves](Truth& one) {
      Bytes codes = model.fp4(one);
      Bytes scales = model.scale(one, 1, 16, model.next_e4m3());
      Bytes globals = model.scale(one, one.rows / halves, one.cols, model.next_f32());
      return std::vector<StackPart>{
          {name, "U8", {one.rows, one.cols / 2}, codes},
          {name + "_weight_scale", "F8_E4M3", {one.rows, ceil_ratio(one.cols, 16)}, scales},
          {name + "_weight_scale_2", "F32", halves == 2 ? Shape{2} : Shape{}, globals}};
    };
  };
  truth.experts = split_stacks(
      add_quantised_stack(model, 2 * kInner, kHidden, encode(base + "gate_up_proj", 2)),
      add_quantised_stack(model, kHidden, kInner, encode(base + "down_proj", 1)), false);
  model.add(base + "gate_up_proj_input_scale", "F32", {}, Bytes(4));
  model.add(base + "down_proj_input_scale", "F32", {}, Bytes(4));
  const CheckpointLayer layer =
      expect_layer(model, truth, {.format = Format::kNvfp4, .block = {1, 16}, .family = "C"});
  EXPECT_THAT(
      layer.coverage.ignored_names,
      ::testing::ElementsAre(base + "down_proj_input_scale", base + "gate_up_proj_input_scale"));
}

TEST(Fused, NMajorFp8BlocksThatTheCutBetweenGateAndUpDivides) {
  TinyModel model;
  LayerTruth truth = qwen35_rest(model);
  const auto encode = [&](const std::string& name) {
    return [&model, name](Truth& one) {
      Bytes codes = model.fp8(one);
      Bytes scales = model.scale(one, 128, 128, model.next_f32());
      return std::vector<StackPart>{{name, "F8_E4M3", {one.rows, one.cols}, codes},
                                    {name + "_scale_inv",
                                     "F32",
                                     {ceil_ratio(one.rows, 128), ceil_ratio(one.cols, 128)},
                                     scales}};
    };
  };
  const std::string base = kQwen35Block + "experts.";
  truth.experts =
      split_stacks(add_quantised_stack(model, 2 * kInner, kHidden, encode(base + "gate_up_proj")),
                   add_quantised_stack(model, kHidden, kInner, encode(base + "down_proj")), false);
  expect_layer(model, truth, {.format = Format::kFp8E4m3, .block = {128, 128}, .family = "C"});
}

TEST(Fused, NMajorFp8WithOneScalePerHalf) {
  TinyModel model;
  LayerTruth truth = qwen35_rest(model);
  const auto encode = [&](const std::string& name, int64_t halves) {
    return [&model, name, halves](Truth& one) {
      Bytes codes = model.fp8(one);
      Bytes scales = model.scale(one, one.rows / halves, one.cols, model.next_f32());
      return std::vector<StackPart>{
          {name, "F8_E4M3", {one.rows, one.cols}, codes},
          {name + "_scale", "F32", halves == 2 ? Shape{2} : Shape{}, scales}};
    };
  };
  const std::string base = kQwen35Block + "experts.";
  truth.experts = split_stacks(
      add_quantised_stack(model, 2 * kInner, kHidden, encode(base + "gate_up_proj", 2)),
      add_quantised_stack(model, kHidden, kInner, encode(base + "down_proj", 1)), false);
  expect_layer(model, truth, {.format = Format::kFp8E4m3, .block = {0, 0}, .family = "C"});
}

nlohmann::json llama4_config() {
  return {{"model_type", "llama4"},
          {"text_config", with(base_config("llama4_text"), {{"num_local_experts", kExperts},
                                                            {"intermediate_size", kInner},
                                                            {"intermediate_size_mlp", 999},
                                                            {"moe_layers", {1, 3}}})}};
}

/// Router and shared expert of a Llama-4 layer.
LayerTruth llama4_rest(TinyModel& model, const std::string& block) {
  model.config = llama4_config();
  LayerTruth truth;
  truth.router = model.add_matrix(Stored::kBf16, block + "router", kExperts, kHidden);
  truth.shared.emplace();
  const std::string shared = block + "shared_expert.";
  truth.shared->gate = model.add_matrix(Stored::kBf16, shared + "gate_proj", kInner, kHidden);
  truth.shared->up = model.add_matrix(Stored::kBf16, shared + "up_proj", kInner, kHidden);
  truth.shared->down = model.add_matrix(Stored::kBf16, shared + "down_proj", kHidden, kInner);
  return truth;
}

TEST(Fused, KMajorBf16) {
  const std::string block = "language_model.model.layers.1.feed_forward.";
  for (const Stored stored : {Stored::kBf16, Stored::kF32}) {
    TinyModel model;
    LayerTruth truth = llama4_rest(model, block);
    truth.experts = split_stacks(
        add_stack(model, block + "experts.gate_up_proj", 2 * kInner, kHidden, true, stored),
        add_stack(model, block + "experts.down_proj", kHidden, kInner, true, stored), false);
    const CheckpointLayer layer = expect_layer(
        model, truth,
        {.format = stored == Stored::kF32 ? Format::kF32 : Format::kBf16, .family = "D"});
    EXPECT_EQ(layer.spec.weight_position, WeightPosition::kInput);
    EXPECT_EQ(layer.spec.routing.scoring, Scoring::kSigmoid);
    EXPECT_FALSE(layer.spec.routing.renormalize);
  }
}

TEST(Fused, KMajorFp8PerChannelWithScalesAcrossTheLastAxis) {
  const std::string block = "language_model.model.layers.3.feed_forward.";
  TinyModel model;
  LayerTruth truth = llama4_rest(model, block);
  const auto encode = [&](const std::string& name) {
    return [&model, name](Truth& one) {  // one is [N, K]; the file holds [K, N] and [1, N]
      Bytes codes = model.fp8(one);
      Bytes transposed(codes.size());
      for (int64_t n = 0; n < one.rows; ++n) {
        for (int64_t k = 0; k < one.cols; ++k) {
          transposed[static_cast<size_t>(k * one.rows + n)] =
              codes[static_cast<size_t>(n * one.cols + k)];
        }
      }
      Bytes scales = model.scale(one, 1, one.cols, model.next_bf16());
      return std::vector<StackPart>{{name, "F8_E4M3", {one.cols, one.rows}, transposed},
                                    {name + "_scale", "BF16", {1, one.rows}, scales}};
    };
  };
  truth.experts = split_stacks(
      add_quantised_stack(model, 2 * kInner, kHidden, encode(block + "experts.gate_up_proj")),
      add_quantised_stack(model, kHidden, kInner, encode(block + "experts.down_proj")), false);
  expect_layer(model, truth,
               {.layer = 3, .format = Format::kFp8E4m3, .block = {1, 0}, .family = "D"});
}

nlohmann::json gpt_oss_config() {
  return with(base_config("gpt_oss"), {{"num_local_experts", kExperts},
                                       {"experts_per_token", kTopK},
                                       {"intermediate_size", kInner},
                                       {"swiglu_limit", 7.0}});
}

/// Router with bias and expert biases of a gpt-oss layer, onto experts already known.
void gpt_oss_rest(TinyModel& model, LayerTruth& truth) {
  const std::string block = "model.layers.1.mlp.";
  truth.router = model.add_matrix(Stored::kBf16, block + "router", kExperts, kHidden);
  truth.logit_bias = model.add_vector(block + "router.bias", kExperts);
  const Truth gate_up = model.floats(block + "experts.gate_up_proj_bias", Stored::kBf16,
                                     {kExperts, 2 * kInner}, kExperts, 2 * kInner);
  const Truth down = model.floats(block + "experts.down_proj_bias", Stored::kBf16,
                                  {kExperts, kHidden}, kExperts, kHidden);
  for (int64_t e = 0; e < kExperts; ++e) {
    ExpertTruth& expert = truth.experts[static_cast<size_t>(e)];
    expert.gate_bias = take_every(gate_up.values, 2 * e * kInner, 2, kInner);
    expert.up_bias = take_every(gate_up.values, 2 * e * kInner + 1, 2, kInner);
    expert.down_bias = take_every(down.values, e * kHidden, 1, kHidden);
  }
}

TEST(GptOss, Bf16IsInterleavedOnTheLastAxis) {
  TinyModel model;
  model.config = gpt_oss_config();
  const std::string base = "model.layers.1.mlp.experts.";
  LayerTruth truth;
  truth.experts = split_stacks(add_stack(model, base + "gate_up_proj", 2 * kInner, kHidden, true),
                               add_stack(model, base + "down_proj", kHidden, kInner, true), true);
  gpt_oss_rest(model, truth);
  const CheckpointLayer layer = expect_layer(model, truth, {.family = "D"});
  EXPECT_EQ(layer.spec.activation.kind, Activation::kSwiGluOai);
}

TEST(GptOss, Mxfp4IsInterleavedByRows) {
  // Blocks of 32 must fill a row here.
  constexpr int64_t kWidth = 160;
  constexpr int64_t kInside = 96;
  TinyModel model;
  model.config = gpt_oss_config();
  model.config["hidden_size"] = kWidth;
  model.config["intermediate_size"] = kInside;
  model.config["quantization_config"] = {{"quant_method", "mxfp4"}};
  const std::string block = "model.layers.1.mlp.";
  const auto encode = [&](const std::string& name) {
    return [&model, name](Truth& one) {
      Bytes codes = model.fp4(one);
      Bytes scales = model.scale(one, 1, 32, model.next_e8m0());
      return std::vector<StackPart>{{name + "_blocks", "U8", {one.rows, one.cols / 32, 16}, codes},
                                    {name + "_scales", "U8", {one.rows, one.cols / 32}, scales}};
    };
  };
  const auto experts = split_stacks(
      add_quantised_stack(model, 2 * kInside, kWidth, encode(block + "experts.gate_up_proj")),
      add_quantised_stack(model, kWidth, kInside, encode(block + "experts.down_proj")), true);
  model.add_matrix(Stored::kBf16, block + "router", kExperts, kWidth);
  model.add_vector(block + "router.bias", kExperts);
  model.floats(block + "experts.gate_up_proj_bias", Stored::kBf16, {kExperts, 2 * kInside},
               kExperts, 2 * kInside);
  model.floats(block + "experts.down_proj_bias", Stored::kBf16, {kExperts, kWidth}, kExperts,
               kWidth);
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const CheckpointLayer layer = checkpoint.layer(1);
  EXPECT_EQ(layer.family.substr(0, 1), "E");
  EXPECT_EQ(layer.spec.weight_format, Format::kMxfp4);
  EXPECT_EQ(layer.spec.intermediate_size, kInside);
  const Weights weights = checkpoint.weights(1);
  for (int64_t e = 0; e < kExperts; ++e) {
    const ExpertWeights expert = weights.experts.load(e);
    const ExpertTruth& expected = experts[static_cast<size_t>(e)];
    expect_matrix(expert.gate, expected.gate, fmt::format("expert {} gate", e));
    expect_matrix(expert.up, expected.up, fmt::format("expert {} up", e));
    expect_matrix(expert.down, expected.down, fmt::format("expert {} down", e));
  }
}

TEST(Granite, FusedLinearsAndSharedExpertBesideTheBlock) {
  TinyModel model;
  model.config = with(base_config("granitemoeshared"), {{"num_local_experts", kExperts},
                                                        {"intermediate_size", kInner},
                                                        {"shared_intermediate_size", kInner}});
  const std::string block = "model.layers.1.block_sparse_moe.";
  LayerTruth truth;
  truth.router = model.add_matrix(Stored::kBf16, block + "router.layer", kExperts, kHidden);
  truth.experts =
      split_stacks(add_stack(model, block + "input_linear.weight", 2 * kInner, kHidden, false),
                   add_stack(model, block + "output_linear.weight", kHidden, kInner, false), false);
  const Truth both = model.add_matrix(Stored::kBf16, "model.layers.1.shared_mlp.input_linear",
                                      2 * kInner, kHidden);
  truth.shared.emplace();
  truth.shared->gate = take_rows(both, 0, 1);
  truth.shared->up = take_rows(both, kInner, 1);
  truth.shared->down =
      model.add_matrix(Stored::kBf16, "model.layers.1.shared_mlp.output_linear", kHidden, kInner);
  expect_layer(model, truth, {.family = "G"});
}

TEST(Gemma4, RouterScalesAndTheDenseMlpBesideTheExperts) {
  TinyModel model;
  model.config = {{"model_type", "gemma4"},
                  {"text_config",
                   {{"model_type", "gemma4_text"},
                    {"hidden_size", kHidden},
                    {"hidden_activation", "gelu_pytorch_tanh"},
                    {"num_experts", kExperts},
                    {"top_k_experts", kTopK},
                    {"moe_intermediate_size", kInner},
                    {"num_hidden_layers", 2},
                    {"enable_moe_block", true},
                    {"rms_norm_eps", 1e-5}}}};
  const std::string layer_prefix = "model.language_model.layers.1.";
  LayerTruth truth;
  truth.router = model.add_matrix(Stored::kBf16, layer_prefix + "router.proj", kExperts, kHidden);
  const auto scale = model.add_vector(layer_prefix + "router.scale", kHidden);
  const auto per_expert = model.add_vector(layer_prefix + "router.per_expert_scale", kExperts);
  truth.experts = split_stacks(
      add_stack(model, layer_prefix + "experts.gate_up_proj", 2 * kInner, kHidden, false),
      add_stack(model, layer_prefix + "experts.down_proj", kHidden, kInner, false), false);
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    model.add_matrix(Stored::kBf16, layer_prefix + "mlp." + name, 8, 8);
  }
  const CheckpointLayer layer = expect_layer(model, truth, {.family = "G"});
  EXPECT_EQ(layer.spec.activation.kind, Activation::kGeGluTanh);

  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const RouterWeights router = checkpoint.weights(1).router;
  expect_vector(router.per_expert_scale, per_expert, "per expert scale");
  EXPECT_FLOAT_EQ(router.input_norm_epsilon, 1e-5f);
  ASSERT_EQ(router.input_norm_scale.extent(0), kHidden);
  for (int64_t i = 0; i < kHidden; ++i) {
    EXPECT_NEAR(router.input_norm_scale.as<const float>()[i],
                scale[static_cast<size_t>(i)] / std::sqrt(static_cast<double>(kHidden)), 1e-7);
  }
}

TEST(KimiK3, LatentExpertsWithNormAndSiTu) {
  constexpr int64_t kLatent = 64;
  TinyModel model;
  model.config = {
      {"model_type", "kimi_k3"},
      {"text_config", with(base_config("kimi_k3"), {{"num_experts", kExperts},
                                                    {"num_experts_per_token", kTopK},
                                                    {"moe_intermediate_size", kInner},
                                                    {"num_shared_experts", 1},
                                                    {"first_k_dense_replace", 1},
                                                    {"routed_scaling_factor", 1.0},
                                                    {"moe_renormalize", true},
                                                    {"routed_expert_hidden_size", kLatent},
                                                    {"hidden_act", "situ"},
                                                    {"situ_beta", 4.0},
                                                    {"situ_linear_beta", 25.0},
                                                    {"rms_norm_eps", 1e-5}})}};
  const FamilyNames names{.block = "language_model.model.layers.1.block_sparse_moe.",
                          .gate = "w1",
                          .up = "w3",
                          .down = "w2",
                          .shared = "shared_experts.",
                          .selection_bias = "gate.e_score_correction_bias"};
  const LayerTruth truth = add_experts(model, names, Stored::kMxfp4Packed, kLatent);
  const Truth down =
      model.add_matrix(Stored::kBf16, names.block + "routed_expert_down_proj", kLatent, kHidden);
  const Truth up =
      model.add_matrix(Stored::kBf16, names.block + "routed_expert_up_proj", kHidden, kLatent);
  const auto norm = model.add_vector(names.block + "routed_expert_norm.weight", kLatent);
  const CheckpointLayer layer =
      expect_layer(model, truth, {.format = Format::kMxfp4, .block = {1, 32}, .family = "A"});
  EXPECT_EQ(layer.spec.latent_size, kLatent);
  EXPECT_FLOAT_EQ(layer.spec.latent_norm_epsilon, 1e-5f);
  EXPECT_EQ(layer.spec.activation.kind, Activation::kSiTu);
  EXPECT_EQ(layer.spec.activation.linear_beta, 25.0f);

  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const Weights weights = checkpoint.weights(1);
  expect_matrix(weights.latent_down, down, "latent down");
  expect_matrix(weights.latent_up, up, "latent up");
  expect_vector(weights.latent_norm, norm, "latent norm");
}

TEST(DeepSeekV4, HashLayersHaveATableAndNoBias) {
  TinyModel model;
  const FamilyCase family = per_expert_families()[10];
  ASSERT_STREQ(family.name, "deepseek_v4");
  model.config = family.config;
  FamilyNames names = family.names;
  names.block = "layers.0.ffn.";
  names.selection_bias = "";
  const LayerTruth truth = add_experts(model, names, Stored::kMxfp4I8);
  model.add_integers("layers.0.ffn.gate.tid2eid", "I64", {3, kTopK}, {0, 1, 3, 2, 1, 0});
  const CheckpointLayer layer = expect_layer(
      model, truth, {.layer = 0, .format = Format::kMxfp4, .block = {1, 32}, .family = "F"});
  EXPECT_TRUE(layer.spec.routing.hash);
  EXPECT_EQ(layer.spec.routing.scoring, Scoring::kSqrtSoftplus);
  EXPECT_EQ(layer.spec.activation.kind, Activation::kSwiGluClamp);
  EXPECT_EQ(layer.spec.activation.limit, 10.0f);

  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const TensorView table = checkpoint.weights(0).router.tid2eid;
  ASSERT_EQ(table.rank, 2);
  EXPECT_EQ(table.as<const int64_t>()[2], 3);
}

TEST(Weights, LoadsFromSeveralThreadsAtOnce) {
  TinyModel model;
  const FamilyCase family = per_expert_families()[0];
  model.config = family.config;
  model.config["quantization_config"] = nlohmann::json::parse(kGptqConfig);
  const LayerTruth truth = add_experts(model, family.names, Stored::kGptqOrder);
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const Weights weights = checkpoint.weights(1);
  std::vector<std::thread> threads;
  for (int64_t e = 0; e < kExperts; ++e) {
    threads.emplace_back([&, e] {
      for (int i = 0; i < 20; ++i) {
        expect_expert(weights.experts.load(e), truth.experts[static_cast<size_t>(e)],
                      fmt::format("expert {}", e), 0.0);
        weights.experts.release(e);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THROW(weights.experts.load(kExperts), Error);
  EXPECT_THROW(weights.experts.load(-1), Error);
}

}  // namespace
}  // namespace switchyard
