#pragma once
// The tensors of one layer's MoE block, each in its slot, and what was left over or is missing.

#include <array>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/tensor_names.h"
#include "switchyard/checkpoint.h"

namespace switchyard {

/// The tensors that together are one matrix (or one vector: kValues alone).
struct StoredMatrix {
  std::array<const CheckpointTensor*, kNumParts> parts{};

  const CheckpointTensor* operator[](Part part) const { return parts[static_cast<size_t>(part)]; }
  /// The tensor that holds the values, in whichever packing.
  const CheckpointTensor* values() const;
  bool empty() const { return values() == nullptr; }
};

using StoredExpert = std::array<StoredMatrix, kNumExpertSlots>;

struct LayerTensors {
  int64_t index = 0;
  std::string layer_prefix{};                   ///< "model.layers.3."
  std::string block{};                          ///< "mlp.", may be empty
  std::array<StoredMatrix, kNumSlots> slots{};  ///< kExpert* unused
  std::vector<StoredExpert> experts{};          ///< empty when fused
  Coverage coverage{};

  std::string prefix() const { return layer_prefix + block; }
  const StoredMatrix& operator[](Slot slot) const { return slots[static_cast<size_t>(slot)]; }
  bool has(Slot slot) const { return !(*this)[slot].empty(); }
  bool fused() const { return has(Slot::kFusedGateUp) || has(Slot::kFusedUp); }
  /// Some tensor of a gate matrix is there.
  bool gated() const;
  void add_missing(Slot slot, int64_t expert = -1);
};

/// The tensors below each layer of the text model; pointers into `all`.
using TensorsByLayer = std::map<int64_t, std::vector<const CheckpointTensor*>>;
TensorsByLayer group_by_layer(const std::vector<CheckpointTensor>& all);

/// True when some tensor of the layer belongs to a routed expert.
bool has_experts(const std::vector<const CheckpointTensor*>& tensors);

/// Puts every tensor in its slot. `configured_experts` (0: unknown) counts where there is no
/// router.
LayerTensors collect_layer(int64_t index, const std::vector<const CheckpointTensor*>& tensors,
                           int64_t configured_experts);

/// "3 tensors are missing: a, b, ...; 1 is not understood: c", at most a screenful.
std::string describe(const Coverage& coverage);

}  // namespace switchyard
