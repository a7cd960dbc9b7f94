#pragma once
// What both targets do with a file's tensors and a config: everything up to the decoded weights.

#include <vector>

#include "checkpoint/layer_assembly.h"
#include "checkpoint/matrix_loader.h"
#include "core/weight_matrix.h"

namespace switchyard::fuzz {

inline void decode(const WeightMatrix& matrix) {
  std::vector<float> row(static_cast<size_t>(matrix.cols));
  for (int64_t r = 0; r < matrix.rows; ++r) decode_row(matrix, r, row.data());
}

inline void load_all(const ResolvedLayer& layer) {
  const LayerTensors& tensors = layer.tensors;
  for (const StoredExpert& expert : tensors.experts) {
    for (size_t slot = 0; slot < kNumExpertSlots; ++slot) {
      Arena arena;
      if (!expert[slot].empty()) decode(load_matrix(expert[slot], layer.formats[slot], 0, arena));
    }
  }
  if (!tensors.fused()) return;
  for (int64_t e = 0; e < layer.spec.num_experts; ++e) {
    for (const Slot slot : {Slot::kFusedGateUp, Slot::kFusedUp, Slot::kFusedDown}) {
      if (!tensors.has(slot)) continue;
      Arena arena;
      const WeightMatrix whole = load_matrix(tensors[slot], layer.format(slot), e, arena);
      decode(whole);
      if (slot != Slot::kFusedGateUp) continue;
      for (const Half half : {Half::kGate, Half::kUp}) {
        decode(take_half(whole, tensors[slot], layer.format(slot), e, half, layer.order));
      }
    }
  }
}

/// Throws nothing but Error.
inline void read_layers(const ModelConfig& config, const std::vector<CheckpointTensor>& all) {
  for (const auto& [index, tensors] : group_by_layer(all)) {
    if (!has_experts(tensors)) continue;
    const int64_t configured = config.num_experts.at(index).value_or(0);
    const ResolvedLayer layer = resolve_layer(config, collect_layer(index, tensors, configured));
    describe(layer.tensors.coverage);
    if (layer.tensors.coverage.complete()) load_all(layer);
  }
}

}  // namespace switchyard::fuzz
