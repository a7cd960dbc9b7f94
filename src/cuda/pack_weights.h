#pragma once
// Weights of a layer or of one matrix, from the checkpoint's host views to the generic kernels'
// layout on the device.

#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/pack_fragments.h"
#include "cuda/stored_rows.h"
#include "switchyard/weights.h"

namespace switchyard::cuda {

/// The order in which Hopper's kernels want the 4-bit weights of a layer whose first expert has
/// these matrices; kRowMajor when they cannot take them. MXFP4 and INT4 become exact E4M3 where
/// activations are FP8 numbers, INT4 exact INT8 where they are INT8, all exact bf16 where they are
/// bf16.
FragmentOrder fragment_order(ActivationFormat activations, const WeightMatrix& up,
                             const WeightMatrix& down, int device);

/// One matrix (or a gate/up pair, rows alternating) per expert.
class PackedMatrices {
 public:
  PackedMatrices() = default;
  /// Allocates for num_experts matrices shaped and stored like `example` (halves: 2 when the first
  /// is a gate). Everything that only some matrices may have is decided by the example. An order
  /// other than kRowMajor is fragment_order()'s answer.
  PackedMatrices(const WeightMatrix& example, int32_t halves, bool has_bias, int64_t num_experts,
                 FragmentOrder order = FragmentOrder::kRowMajor);

  /// `matrices` holds `halves` of them, `biases` likewise (empty views: 0).
  void pack(int64_t expert, const std::vector<WeightMatrix>& matrices,
            const std::vector<TensorView>& biases);

  /// After the last expert. Throws when a scale was not a number; `name` is the matrix's.
  void finish(const char* name);

  const WeightRows& rows() const { return view_; }
  /// Of a layer in fragment order, once finished.
  const ScaleSpread& spread() const { return spread_; }
  bool has_smooth_scales() const { return view_.smooth_scales != nullptr; }
  int64_t bytes() const;

 private:
  struct Part {
    DeviceBuffer memory;
    int64_t expert_bytes = 0;
  };
  Part allocate(int64_t expert_bytes, int64_t num_experts) const;
  void pack_fragments(int64_t expert);

  WeightRows view_{};
  Part values_, scales_, zero_points_, group_index_, smooth_, global_, bias_;
  Part row_scales_;
  /// Fragment order: one expert's rows and scales on the device until they are in order.
  DeviceBuffer staged_rows_, staged_scales_, device_spread_;
  ScaleSpread spread_{};
  std::vector<char> staging_;
};

/// "row scales 0-3 binades apart in 98.1 % of rows, 4-7 in 1.9 %"; empty when no row was counted.
std::string to_string(const ScaleSpread& spread);

}  // namespace switchyard::cuda
