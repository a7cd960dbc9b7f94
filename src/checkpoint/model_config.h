#pragma once
// config.json as checked values. Absent keys stay absent: the tensors speak first, and
// layer_assembly decides what must be known.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/model_traits.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

enum class LayerKind { kUnknown, kDense, kMoe, kHashMoe };
const char* to_string(LayerKind kind);

/// A number of the model, or one per layer.
struct PerLayer {
  std::string key{};  ///< as config.json spells it; empty: absent
  std::vector<int64_t> values{};
  std::optional<int64_t> at(int64_t layer) const;
};

struct QuantizationConfig {
  std::string method{};               ///< "fp8", "compressed-tensors", ...; empty: none
  int64_t block_rows = 0;             ///< weight_block_size; 0: not said
  int64_t block_cols = 0;             ///< the same, or group_size
  int64_t bits = 0;                   ///< of INT4 methods; 0: not said
  bool zero_points_minus_one = true;  ///< GPTQ's first checkpoint format
};

struct ModelConfig {
  std::string source{};      ///< path, for messages
  std::string model_type{};  ///< of the whole model
  std::string text_type{};   ///< of the text model
  const ModelTraits* traits = nullptr;

  int64_t num_hidden_layers = 0;  ///< 0: not said
  std::vector<LayerKind> layer_kinds{};
  std::string placement{};  ///< the key that decided layer_kinds

  std::optional<int64_t> hidden_size{}, latent_size{}, shared_intermediate_size{};
  PerLayer num_experts{}, top_k{}, intermediate_size{}, num_shared_experts{};
  int64_t zero_experts = 0;
  bool latent_norm = false;  ///< has_routed_norm (Kimi-K3)

  std::optional<Scoring> scoring{};
  std::optional<bool> renormalize{};
  std::optional<bool> selection_bias{};
  std::optional<float> routed_scaling_factor{};
  int32_t num_groups = 1;
  int32_t topk_groups = 1;
  GroupScore group_score = GroupScore::kTop2Sum;
  std::optional<ActivationSpec> activation{};
  std::string activation_name{};  ///< as config.json says it
  float rms_norm_epsilon = 1e-6f;
  QuantizationConfig quantization{};

  LayerKind layer_kind(int64_t layer) const;
};

/// `text` is config.json; `source` names it in messages. Throws Error{kInvalidFile} for values of
/// the wrong type or out of range, Error{kUnsupported} for an unknown quant_method.
ModelConfig parse_model_config(std::string_view text, const std::string& source);

/// Fills in what ModelOpt says in hf_quant_config.json.
void merge_hf_quant_config(ModelConfig& config, std::string_view text, const std::string& source);

}  // namespace switchyard
