#pragma once
// Routed experts as the CPU kernels read them. Written once by pack_experts, read by every step.

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/activation_rows.h"
#include "cpu/huge_buffer.h"
#include "cpu/kernels.h"
#include "cpu/numa.h"
#include "cpu/pack_weights.h"
#include "switchyard/layer.h"

namespace switchyard::cpu {

/// The weights of gate_up or down of all experts. Panels of gate and up alternate, so that one
/// stream delivers both halves of 32 columns of the intermediate.
struct PackedStage {
  Packing packing{};
  RowLayout rows{};
  ActivationFormat activation_format = ActivationFormat::kNone;
  int64_t num_outputs = 0;
  int64_t num_inputs = 0;
  int64_t num_panels = 0;  ///< of one matrix
  int num_matrices = 1;    ///< 2: gate and up
  /// One per memory node: of every expert the panels [first_panel(s), first_panel(s + 1)).
  std::vector<HugeBuffer> shards{};
  int64_t panels_per_shard = 1;
  std::vector<float> global_scales{};  ///< [E][num_matrices]
  std::vector<float> biases{};         ///< [E][num_matrices][num_panels * 32], or empty
  std::vector<float> smooth_scales{};  ///< [E][num_inputs], or empty

  int64_t expert_bytes() const { return num_panels * num_matrices * packing.layout.panel_bytes; }
  int64_t packed_bytes() const {
    int64_t bytes = 0;
    for (const HugeBuffer& shard : shards) bytes += shard.bytes();
    return bytes;
  }
  int num_shards() const { return static_cast<int>(shards.size()); }
  int64_t first_panel(int64_t shard) const {
    return std::min(shard * panels_per_shard, num_panels);
  }
  int64_t panels_of_shard(int64_t shard) const {
    return first_panel(shard + 1) - first_panel(shard);
  }
  const uint8_t* panel(int64_t expert, int64_t index, int matrix) const {
    const int64_t shard = index / panels_per_shard;
    const int64_t local = expert * panels_of_shard(shard) + index - first_panel(shard);
    return shards[static_cast<size_t>(shard)].data() +
           (local * num_matrices + matrix) * packing.layout.panel_bytes;
  }
  float global_scale(int64_t expert, int matrix) const {
    return global_scales[static_cast<size_t>(expert * num_matrices + matrix)];
  }
  const float* bias(int64_t expert, int64_t index, int matrix) const {
    if (biases.empty()) return nullptr;
    return biases.data() + ((expert * num_matrices + matrix) * num_panels + index) * kPanelRows;
  }
  const float* smooth_scale(int64_t expert) const {
    return smooth_scales.empty() ? nullptr : smooth_scales.data() + expert * num_inputs;
  }
  int64_t outputs_of_panel(int64_t index) const {
    const int64_t left = num_outputs - index * kPanelRows;
    return left < kPanelRows ? left : kPanelRows;
  }
};

struct ExpertPanels {
  LayerSpec spec{};
  const Kernels* kernels = nullptr;
  const NumaTopology* topology = nullptr;
  std::shared_ptr<Executor> executor{};
  int64_t num_experts = 0;
  PackedStage gate_up{};
  PackedStage down{};

  /// bf16 hidden states that nothing happens to before the products may stay bf16.
  bool takes_bf16_input() const {
    return kernels->bf16_rows && takes_bf16_rows(gate_up.packing.layout.values) &&
           gate_up.rows.values == RowValues::kF32 && !needs_rounding(gate_up.activation_format) &&
           !input_by_row();
  }

  /// Rows of the input belong to (token, slot) pairs, not to tokens: something that differs between
  /// the experts of a token happens to them before they are rounded.
  bool input_by_row() const {
    return !gate_up.smooth_scales.empty() || (spec.weight_position == WeightPosition::kInput &&
                                              needs_rounding(gate_up.activation_format));
  }
};

/// Packs expert by expert, as many at a time as there are threads. Throws what `source` throws, or
/// Error.
ExpertPanels pack_experts(const LayerSpec& spec, const ExpertSource& source,
                          const LayerOptions& options, const NumaTopology& topology);

}  // namespace switchyard::cpu
