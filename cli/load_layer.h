#pragma once
// From a model directory to a packed layer, with a progress bar while the weights are packed.

#include <cstdint>
#include <string>

#include "cli/host_tensor.h"
#include "switchyard/checkpoint.h"
#include "switchyard/layer.h"

namespace switchyard::cli {

/// Throws Error{kInvalidArgument} naming the MoE layers when `index` is none of them.
void check_is_moe_layer(const Checkpoint& checkpoint, int64_t index);

/// Layer::create with a progress bar.
Layer create_layer(const LayerSpec& spec, const Weights& weights, LayerOptions options,
                   const std::string& label);

/// A layer with scratch for a number of tokens.
class Runner {
 public:
  Runner(const Layer& layer, int64_t max_tokens)
      : layer_(&layer), workspace_(layer.workspace_bytes(max_tokens)) {}
  void forward(const ForwardArgs& args) const { layer_->forward(args, workspace_.workspace()); }

 private:
  const Layer* layer_;
  HostBuffer workspace_;
};

}  // namespace switchyard::cli
