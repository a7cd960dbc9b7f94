#pragma once
// What a model's code does and its config.json does not say, one row per model_type.

#include <string_view>

#include "checkpoint/tensor_names.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

/// Whether a layer needs a selection bias tensor.
enum class BiasRule { kNone, kOptional, kRequired };
/// How a fused gate_up tensor is ordered, and which activation `hidden_act` really means.
enum class GluStyle { kPlain, kOai, kOaiInterleaved };

struct ModelTraits {
  std::string_view model_type;  ///< of the text model, without "_text"
  Scoring scoring = Scoring::kSoftmax;
  bool renormalize = true;  ///< when config.json does not say
  float renormalize_epsilon = 0.0f;
  BiasRule selection_bias = BiasRule::kNone;
  bool scaled = false;  ///< routed_scaling_factor must be there
  GluStyle glu = GluStyle::kPlain;
  std::string_view hidden_act{};  ///< when the model's code fixes it and config.json is silent
  /// The size of one expert is intermediate_size when there is no moe_intermediate_size.
  bool plain_intermediate_size = false;
  WeightPosition weight_position = WeightPosition::kOutput;
  bool clamped = false;         ///< swiglu_limit must be there
  bool biases = false;          ///< gate/up and down of the routed experts have one each
  uint32_t required_slots = 0;  ///< slot_bit()s of what neither config.json nor a sibling announces
};

/// Null for a model type that is not in the table. "x_text" is looked up as "x".
const ModelTraits* find_traits(std::string_view model_type);

}  // namespace switchyard
