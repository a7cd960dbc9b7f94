#pragma once
// Every step of the layer as an operation of its own, on caller-owned memory. Names and contracts
// follow the field: sorting is a drop-in for the CK / OPUS moe_sorting contract. T = tokens, K =
// top_k, E = experts, H = hidden_size, I = intermediate_size.

#include <cstdint>
#include <memory>

#include "switchyard/export.h"
#include "switchyard/layer.h"

namespace switchyard {

namespace ops {

/// Where an op runs. Pointers must be reachable from there.
struct Execution {
  BackendKind backend = BackendKind::kCpu;
  int device = 0;
  Stream stream{};
  Workspace workspace{};         ///< for ops that have a *_workspace_bytes function
  Executor* executor = nullptr;  ///< CPU: used instead of the process-wide pool
};

/// Router logits to expert choice.
struct RouteArgs {
  TensorView router_logits{};     ///< [T, E] f32, bf16 or f16
  TensorView logit_bias{};        ///< [E] f32/bf16/f16, or empty
  TensorView selection_bias{};    ///< [E] f32, or empty
  TensorView per_expert_scale{};  ///< [E] f32, or empty
  TensorView input_ids{};         ///< [T] i32/i64, hash layers
  TensorView tid2eid{};           ///< [vocab, K] i32/i64, hash layers
  int64_t num_fused_shared =
      0;  ///< appended ids E.. and weight fused_shared_weight in the last columns
  float fused_shared_weight = 1.0f;
  TensorView num_tokens{};  ///< [1] i32 or empty: rows beyond it get id -1 and weight 0
  TensorView topk_ids{};  ///< out [T, K] i32, descending score, K distinct ids whatever the logits
  TensorView topk_weights{};  ///< out [T, K] f32
};
SWITCHYARD_EXPORT void route(const RoutingSpec& spec, const RouteArgs& args,
                             const Execution& execution = {});

/// Rows to allocate for sort's outputs: T*K + min(E, T*K) * unit - K, rounded up to whole blocks.
/// The classic, unrounded T*K + E * unit - K is accepted too.
SWITCHYARD_EXPORT int64_t sort_capacity(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                        int64_t unit_size);
SWITCHYARD_EXPORT int64_t sort_workspace_bytes(int64_t num_tokens, int64_t top_k,
                                               int64_t num_experts, int64_t unit_size,
                                               BackendKind backend = BackendKind::kCpu);

/// MoE sorting. A packed id is slot << 24 | token; padding is K << 24 | T. Blocks of unit_size
/// rows, ascending experts, ascending tokens and slots inside an expert; experts without tokens or
/// masked out get no block. Outputs are written to their end: rows past num_valid_ids[0] are
/// padding.
struct SortArgs {
  TensorView topk_ids{};      ///< [T, K] i32; < 0 and >= E are skipped
  TensorView topk_weights{};  ///< [T, K] f32, copied bit for bit
  int64_t num_experts = 0;
  int64_t unit_size = 32;
  TensorView
      expert_mask{};  ///< [E] i32, 1 = local; ids are then compacted to local ones. Empty: all
  TensorView
      num_local_tokens{};   ///< [1] i32 where the op runs: only the first n rows count. Empty: T
  TensorView sorted_ids{};  ///< out [capacity] i32, packed
  TensorView sorted_weights{};     ///< out [capacity] f32, 0 in padding
  TensorView sorted_expert_ids{};  ///< out [capacity / unit] i32; blocks past num_valid_ids[0] /
                                   ///< unit hold -1
  TensorView num_valid_ids{};      ///< out [2] or [1] i32: padded rows, tokens
  TensorView moe_buf{};            ///< zero-filled when given; bytes a multiple of 16
  TensorView local_topk_ids{};     ///< out [T, K] i32 or empty: local expert id, -1 when skipped
  TensorView m_indices{};  ///< out [capacity] i32 or empty: token of a sorted row, T in padding
  TensorView reverse_sorted{};  ///< out [T * K] i32 or empty: sorted row of a pair, -1 when skipped
};
SWITCHYARD_EXPORT void sort(const SortArgs& args, const Execution& execution = {});

/// Rows of a matrix to a quantised format, optionally gathered.
struct QuantizeArgs {
  TensorView input{};          ///< [M, C] f32, bf16 or f16
  TensorView row_index{};      ///< [R] i32 or empty: output row r is input row row_index[r]; out of
                               ///< range gives zeros
  TensorView channel_scale{};  ///< [C] f32 or empty: multiplies the input first (SmoothQuant)
  Format format = Format::kFp8E4m3;
  /// {1, n} per row, {0, 0} per tensor, {128, 128} as DeepSeek stores weights.
  ScaleBlock scale_block{1, 128};
  ScaleRounding rounding = ScaleRounding::kUp;  ///< MX formats
  bool power_of_two_scales = false;             ///< FP8: round scales up to powers of two (ue8m0)
  float global_scale = 1.0f;                    ///< kNvfp4: multiplies on decode
  TensorView values{};  ///< out [R, C] f8_e4m3 / i8, or [R, ceil(C/2)] u8 for 4-bit
  TensorView scales{};  ///< out, one per block: f32, bf16 or e8m0 (powers of two); e8m0 (MX);
                        ///< f8_e4m3 (NVFP4)
};
SWITCHYARD_EXPORT void quantize(const QuantizeArgs& args, const Execution& execution = {});

/// Stored matrix to f32 [N, K]; exact.
SWITCHYARD_EXPORT void dequantize(const WeightMatrix& matrix, TensorView output);

/// Activation of a gate/up product: [R, 2I] (or [R, I] when not gated) to [R, I].
struct ActivateArgs {
  ActivationSpec activation{};
  GateUpOrder order = GateUpOrder::kConcatenated;
  TensorView input{};   ///< [R, 2I] f32, bf16 or f16
  TensorView bias{};    ///< [2I] or empty
  TensorView output{};  ///< [R, I] f32, bf16 or f16
};
SWITCHYARD_EXPORT void activate(const ActivateArgs& args, const Execution& execution = {});

/// The tail of a gate_up that was split along K: partial sums, bias, activation, codes and scales.
/// Partial sums are added in f32 in their order, then the bias of the row's expert.
struct ActivateQuantizeArgs {
  ActivationSpec activation{};
  GateUpOrder order = GateUpOrder::kConcatenated;
  TensorView input{};  ///< [B, R, 2I] f32, bf16 or f16 (or [B, R, I] when not gated)
  TensorView bias{};   ///< f32, bf16 or f16: [2I], or [E, 2I] with sorted_expert_ids; or empty
  /// Of sort, with its unit size: output row r is the pair's input row, token * top_k + slot;
  /// padding gives zeros. Empty: output row r is input row r.
  TensorView sorted_ids{};
  TensorView sorted_expert_ids{};
  int64_t unit_size = 32;
  int64_t top_k = 0;
  /// From format to scales; input, row_index and channel_scale stay empty.
  QuantizeArgs quantized{};
};
SWITCHYARD_EXPORT void activate_quantize(const ActivateQuantizeArgs& args,
                                         const Execution& execution = {});

/// Weighted sum over the K slots of a token, in slot order, in f32.
struct CombineArgs {
  TensorView expert_output{};  ///< [T, K, H] f32, bf16 or f16
  TensorView
      topk_ids{};  ///< [T, K] i32 or empty: slots with an id < 0 or >= num_experts are not read
  int64_t num_experts = 0;    ///< with topk_ids
  TensorView expert_mask{};   ///< [E] i32 or empty: slots of masked experts are not read
  TensorView topk_weights{};  ///< [T, K] f32 or empty (already applied)
  TensorView addend{};        ///< [T, H] or empty: shared expert, added first
  TensorView residual{};      ///< [T, H] or empty: added next
  TensorView num_tokens{};    ///< [1] i32 or empty
  TensorView output{};        ///< [T, H] f32, bf16 or f16
};
SWITCHYARD_EXPORT void combine(const CombineArgs& args, const Execution& execution = {});

/// Stage 1 on sorted rows: output[t, k, :] = act(x_t . gate^T, x_t . up^T).
struct GateUpArgs {
  TensorView hidden_states{};  ///< [T, H] f32, bf16 or f16
  TensorView sorted_ids{};     ///< of sort, with its unit size
  TensorView sorted_expert_ids{};
  TensorView num_valid_ids{};
  TensorView sorted_weights{};  ///< multiplies the input when the spec says WeightPosition::kInput
  int64_t unit_size = 32;
  int64_t top_k = 0;
  TensorView output{};  ///< out [T, K, I] f32, bf16 or f16; rows of skipped pairs are not written
};
/// Stage 2 on sorted rows: output[t, k, :] = weight * (h[t, k] . down^T + bias).
struct DownArgs {
  TensorView intermediate{};  ///< [T, K, I] f32, bf16 or f16
  TensorView sorted_ids{};
  TensorView sorted_expert_ids{};
  TensorView num_valid_ids{};
  TensorView sorted_weights{};  ///< or empty: no weighting here
  int64_t unit_size = 32;
  int64_t top_k = 0;
  TensorView output{};  ///< out [T, K, H] f32, bf16 or f16; rows of skipped pairs are not written
};
/// MoE as dense GEMM: sum of alpha times expert; on Hopper fast for up to top_k experts a token.
struct DenseArgs {
  TensorView hidden_states{};  ///< [T, H]
  TensorView alpha{};          ///< [T, E] f32; 0 = not routed
  TensorView output{};         ///< out [T, H]
};

/// Packed experts of one layer, for callers that run the steps themselves. On Hopper gate_up and
/// down are fastest with blocks of 8 to 64 rows (powers of two) for few rows per expert and of 128
/// for many, bf16 outputs, and data on 16 bytes; anything else runs on slower kernels.
class SWITCHYARD_EXPORT Experts {
 public:
  static Experts create(const LayerSpec& spec, const ExpertSource& source,
                        const LayerOptions& options = {});
  Experts(Experts&&) noexcept;
  Experts& operator=(Experts&&) noexcept;
  ~Experts();

  int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const;
  void gate_up(const GateUpArgs& args, Workspace workspace, Stream stream = {}) const;
  void down(const DownArgs& args, Workspace workspace, Stream stream = {}) const;
  void dense(const DenseArgs& args, Workspace workspace, Stream stream = {}) const;

 private:
  struct Impl;
  explicit Experts(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ops
}  // namespace switchyard
