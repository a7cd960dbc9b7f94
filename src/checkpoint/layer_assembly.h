#pragma once
// One MoE layer, understood: tensors and config.json agree, every slot has a format, and the
// LayerSpec follows.

#include <array>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/matrix_format.h"
#include "checkpoint/model_config.h"
#include "switchyard/layer_spec.h"
#include "switchyard/weights.h"

namespace switchyard {

struct ResolvedLayer {
  LayerTensors tensors{};
  /// By Slot; for kExpert* the format that all experts share.
  std::array<MatrixFormat, kNumSlots> formats{};
  GateUpOrder order = GateUpOrder::kConcatenated;
  LayerSpec spec{};  ///< complete only when tensors.coverage is
  float router_norm_epsilon = 0.0f;
  std::string family{};
  std::string weight_format{};
  int64_t expert_bytes = 0;
  int64_t other_bytes = 0;

  const MatrixFormat& format(Slot slot) const { return formats[static_cast<size_t>(slot)]; }
};

/// Throws Error for a contradiction between config.json and the tensors, printing both, or a tensor
/// of the wrong dtype or shape. Missing and unknown tensors are left in tensors.coverage.
ResolvedLayer resolve_layer(const ModelConfig& config, LayerTensors tensors);

}  // namespace switchyard
