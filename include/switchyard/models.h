#pragma once
// The built-in table of production layer shapes, used by the CLI, tests and benches.

#include <string>
#include <vector>

#include "switchyard/export.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

/// One production MoE layer, as served: full model or one shard of it.
struct ModelShape {
  std::string name{};           ///< "qwen3-30b-a3b", "deepseek-r1-tp8", ...
  std::string title{};          ///< "Qwen3-30B-A3B"
  std::string note{};           ///< shard and source
  LayerSpec spec{};             ///< weight_format is the model's native one
  bool biases = false;          ///< gate/up and down biases (gpt-oss)
  bool selection_bias = false;  ///< a router with e_score_correction_bias
};

SWITCHYARD_EXPORT const std::vector<ModelShape>& model_shapes();
/// Throws Error{kInvalidArgument} that lists the names.
SWITCHYARD_EXPORT const ModelShape& model_shape(const std::string& name);

/// `spec` with its weights stored in another format, with that format's usual scale block.
SWITCHYARD_EXPORT LayerSpec with_format(LayerSpec spec, Format format);

}  // namespace switchyard
