// The table of known models. A model that behaves like one of these is one more row.

#include "checkpoint/model_traits.h"

namespace switchyard {

namespace {

constexpr ModelTraits softmax(std::string_view type, bool renormalize,
                              bool plain_intermediate_size = false) {
  return {.model_type = type,
          .renormalize = renormalize,
          .plain_intermediate_size = plain_intermediate_size};
}

/// Qwen's shared expert has a sigmoid gate; without that tensor it would silently count in full.
constexpr ModelTraits qwen_shared(std::string_view type, bool renormalize) {
  return {.model_type = type,
          .renormalize = renormalize,
          .required_slots = slot_bit(Slot::kSharedSigmoid)};
}

/// DeepSeek-V3's router: sigmoid, correction bias, groups, scaling factor, epsilon 1e-20.
constexpr ModelTraits deepseek(std::string_view type) {
  return {.model_type = type,
          .scoring = Scoring::kSigmoid,
          .renormalize_epsilon = 1e-20f,
          .selection_bias = BiasRule::kRequired,
          .scaled = true};
}

constexpr ModelTraits deepseek_v4() {
  ModelTraits traits = deepseek("deepseek_v4");
  traits.scoring = Scoring::kSqrtSoftplus;
  traits.clamped = true;
  return traits;
}

constexpr ModelTraits kTable[] = {
    softmax("mixtral", true, true),
    softmax("granitemoe", true, true),
    softmax("granitemoehybrid", true, true),
    softmax("granitemoeshared", true, true),
    softmax("hunyuan", true, true),
    softmax("hunyuan_v1_moe", true, true),
    softmax("olmoe", false, true),
    qwen_shared("qwen2_moe", false),
    softmax("qwen3_moe", false),
    qwen_shared("qwen3_next", true),
    qwen_shared("qwen3_5_moe", true),
    softmax("qwen3_vl_moe", true),
    softmax("qwen3_omni_moe", true),
    qwen_shared("qwen4_exp", true),
    {.model_type = "gemma4",
     .required_slots = slot_bit(Slot::kPerExpertScale) | slot_bit(Slot::kRouterNormScale)},
    {.model_type = "deepseek_v2", .renormalize = false, .renormalize_epsilon = 1e-20f},
    deepseek("deepseek_v3"),
    deepseek("deepseek_v32"),
    deepseek_v4(),
    deepseek("kimi_k2"),
    deepseek("kimi_k25"),
    deepseek("kimi_k3"),
    deepseek("kimi_linear"),
    deepseek("glm4_moe"),
    deepseek("glm4_moe_lite"),
    deepseek("glm4v_moe"),
    deepseek("glm_moe_dsa"),
    deepseek("dots1"),
    deepseek("exaone_moe"),
    deepseek("nemotron_h"),
    deepseek("hy_v3"),
    {.model_type = "mimo_v2_flash",
     .scoring = Scoring::kSigmoid,
     .renormalize_epsilon = 1e-20f,
     .selection_bias = BiasRule::kRequired},
    {.model_type = "mimo_v2",
     .scoring = Scoring::kSigmoid,
     .renormalize_epsilon = 1e-20f,
     .selection_bias = BiasRule::kRequired},
    {.model_type = "minimax_m2",
     .scoring = Scoring::kSigmoid,
     .selection_bias = BiasRule::kRequired,
     .plain_intermediate_size = true},
    {.model_type = "minimax_m3_vl",
     .scoring = Scoring::kSigmoid,
     .selection_bias = BiasRule::kRequired,
     .scaled = true,
     .glu = GluStyle::kOai,
     .plain_intermediate_size = true},
    {.model_type = "minimax_m3",
     .scoring = Scoring::kSigmoid,
     .selection_bias = BiasRule::kRequired,
     .scaled = true,
     .glu = GluStyle::kOai,
     .plain_intermediate_size = true},
    {.model_type = "lfm2_moe",
     .scoring = Scoring::kSigmoid,
     .renormalize_epsilon = 1e-6f,
     .selection_bias = BiasRule::kOptional,
     .hidden_act = "silu"},
    {.model_type = "ernie4_5_moe", .selection_bias = BiasRule::kRequired},
    {.model_type = "gpt_oss",
     .glu = GluStyle::kOaiInterleaved,
     .plain_intermediate_size = true,
     .biases = true,
     .required_slots = slot_bit(Slot::kLogitBias)},
    {.model_type = "llama4",
     .scoring = Scoring::kSigmoid,
     .renormalize = false,
     .plain_intermediate_size = true,
     .weight_position = WeightPosition::kInput,
     .required_slots = slot_bit(Slot::kSharedDown)},
};

}  // namespace

const ModelTraits* find_traits(std::string_view model_type) {
  constexpr std::string_view kText = "_text";
  if (model_type.ends_with(kText)) model_type.remove_suffix(kText.size());
  for (const ModelTraits& row : kTable) {
    if (row.model_type == model_type) return &row;
  }
  return nullptr;
}

}  // namespace switchyard
