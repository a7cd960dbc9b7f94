#pragma once
// The weights of a layer as a checkpoint stores them. Views only; a backend packs them once.

#include <cstdint>
#include <functional>

#include "switchyard/export.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// One matrix [rows = N outputs, cols = K inputs] in its stored format.
///
/// values is 2-D with any strides, so that gate and up may be every other row of a fused tensor, or
/// the columns of a transposed one. Formats of a byte or more: shape [N, K]. 4-bit formats: shape
/// [N, K/2] of kU8/kI8, or [N, K/8] of kI32; the element with the lower index sits in the lower
/// nibble.
struct WeightMatrix {
  Format format = Format::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  TensorView values{};

  /// kF32, kF16, kBf16, kF8E8m0 (or kU8 read as E8M0) or kF8E4m3 (NVFP4); 2-D, one per ScaleBlock.
  /// Empty: all 1.
  TensorView scales{};
  ScaleBlock scale_block{};
  /// Row n of this matrix is row `scale_row_begin + n * scale_row_step` of the matrix that `scales`
  /// describes: blocks of 128 rows do not care where a fused gate/up tensor was cut.
  int64_t scale_row_begin = 0;
  int64_t scale_row_step = 1;
  /// Multiplies every value (NVFP4's second level; the reciprocal of compressed-tensors' divisor).
  float global_scale = 1.0f;

  /// kInt4 only: stored zero points [N, ceil(K / group)] as kU8, one per byte. Empty: 8.
  TensorView zero_points{};
  /// kInt4 only: group of each input column [K] as kI32 (actorder). Empty: column / group size.
  TensorView group_index{};
  /// SmoothQuant: [K] f32 that multiplies the activation's channels. Empty: none.
  TensorView smooth_scales{};

  constexpr bool empty() const { return values.empty(); }
};

/// The matrices of one expert. gate is empty for a non-gated activation. Biases: [I], [I], [H];
/// f32, bf16 or f16.
struct ExpertWeights {
  WeightMatrix gate{};
  WeightMatrix up{};
  WeightMatrix down{};
  TensorView gate_bias{};
  TensorView up_bias{};
  TensorView down_bias{};
};

/// Experts one by one, so that a layer larger than memory allows twice can be packed.
struct ExpertSource {
  int64_t num_experts = 0;
  /// Views of expert e, valid until release(e). May be called from several threads for different
  /// experts.
  std::function<ExpertWeights(int64_t expert)> load{};
  /// Told when expert e has been packed; may be empty.
  std::function<void(int64_t expert)> release{};
};

/// Router and everything else that is applied once per token.
struct RouterWeights {
  WeightMatrix projection{};  ///< [E, H]; empty when the caller brings logits or ids
  TensorView logit_bias{};    ///< [E], part of the logits (gpt-oss)
  TensorView
      selection_bias{};  ///< [E], used for selection only (e_score_correction_bias); stays f32
  TensorView per_expert_scale{};  ///< [E], multiplies the final weights (Gemma-4)
  TensorView tid2eid{};           ///< [vocab, K] kI64 or kI32, hash layers
  TensorView input_norm_scale{};  ///< [H], multiplies the RMS-normed router input (Gemma-4)
  float input_norm_epsilon = 0.0f;
};

/// All weights of one MoE block.
struct Weights {
  ExpertSource experts{};
  RouterWeights router{};
  ExpertWeights shared{};      ///< when spec.shared.intermediate_size > 0
  WeightMatrix shared_gate{};  ///< [1, H] when spec.shared.sigmoid_gate
  WeightMatrix latent_down{};  ///< [L, H] when spec.latent_size > 0
  TensorView latent_norm{};    ///< [L], RMS norm of the weighted sum; may be empty
  WeightMatrix latent_up{};    ///< [H, L]
};

/// How gate and up share one stacked tensor.
enum class GateUpOrder : int32_t {
  kConcatenated = 0,  ///< gate rows first, then up rows
  kInterleaved = 1,   ///< gate_0, up_0, gate_1, ...
};

/// Experts from stacked tensors: gate_up [E, 2I, H] (non-gated: [E, I, H]) and down [E, H, I], in
/// `format`, each with its scales (3-D, leading E) or empty. Biases [E, 2I] and [E, H] or empty.
struct StackedExperts {
  Format format = Format::kBf16;
  ScaleBlock scale_block{};
  GateUpOrder order = GateUpOrder::kConcatenated;
  bool gated = true;
  TensorView gate_up{};
  TensorView gate_up_scales{};
  TensorView gate_up_bias{};
  TensorView down{};
  TensorView down_scales{};
  TensorView down_bias{};
  /// What some formats have besides, or empty. kNvfp4: global scales, f32, [E] or for gate_up [E,
  /// 2] (gate, up).
  TensorView gate_up_global_scales{};
  TensorView down_global_scales{};
  /// kInt4: zero points, kU8, [E, 2I, ceil(H / group)] and [E, H, ceil(I / group)].
  TensorView gate_up_zero_points{};
  TensorView down_zero_points{};
  /// SmoothQuant: f32, [E, H] and [E, I].
  TensorView gate_up_smooth_scales{};
  TensorView down_smooth_scales{};
};
SWITCHYARD_EXPORT ExpertSource expert_source(const StackedExperts& stacked);

}  // namespace switchyard
