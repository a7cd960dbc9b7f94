#pragma once
// The experts of one layer for few tokens: sort, [quantise], gate_up, [quantise], down, combine,
// each starting while the one before it ends.

#include <string>

#include "backend.h"
#include "core/activation_format.h"
#include "core/workspace_layout.h"
#include "cuda/pack_weights.h"
#include "cuda/sm90/decode_fragments.h"
#include "cuda/sm90/decode_gemm.h"
#include "cuda/sm90/operand_rows.h"
#include "cuda/tuned_experts.h"

namespace switchyard::cuda::sm90 {

class DecodeExperts {
 public:
  /// Why these weights and activations have no decode kernel, or empty.
  static std::string why_unsupported(const LayerSpec& spec, const PackedMatrices& gate_up,
                                     const PackedMatrices& down);
  /// For packed experts that outlive it. num_ctas: of a GEMM, 0: one per SM.
  DecodeExperts(const LayerSpec& spec, const PackedMatrices& gate_up, const PackedMatrices& down,
                int device, int num_ctas = 0);

  /// Why run() cannot take hidden states of this type, or null.
  const char* why_unsupported(DataType hidden_states) const;
  int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const;
  void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits, Plan& plan) const;
  /// Any number of tokens, decode_pass_tokens() at a time; with topk_ids or without.
  void run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const;
  /// False, and nothing done, where no tile has the unit's height or the input's type is another.
  bool run_stage(const StageJob& job, Workspace workspace, Stream stream) const;
  int64_t stage_workspace_bytes(int64_t max_tokens, int64_t top_k) const;

 private:
  struct Matrix {
    const PackedMatrices* packed = nullptr;
    DecodeOperand operand{};
    CUtensorMap map{};
    DecodeFragmentArgs fragments{};  ///< instead of operand and map
    DecodeSteps steps{};
  };
  struct Places;  // of the intermediates in the workspace
  struct Batch;   // one call
  Matrix matrix_of(const PackedMatrices& packed) const;
  Places places(int64_t num_tokens, int64_t top_k) const;
  void run_batch(const Batch& batch) const;
  Places stage_places(int64_t num_tokens, int64_t top_k, int32_t unit_size, bool is_down) const;
  DecodeArgs sort_batch(const Batch& batch) const;
  /// Fills in the input of gate_up: the hidden states or their codes.
  void set_tokens(const Batch& batch, DecodeArgs& args) const;
  /// Fills in the input of down, and what gate_up has to do for it.
  void set_hidden(const Batch& batch, DecodeArgs& gate_up, DecodeArgs& down) const;
  /// The rounding of a GEMM's input, of `columns` columns, by the generic kernel.
  void quantize_input(const Batch& batch, const TensorView& input, const Matrix& matrix,
                      const RoundedRows& to, bool per_pair, const DecodeArgs& lists) const;
  /// Whether the hidden states are rounded beside the sort: not where all tokens share a scale, or
  /// experts scale the channels.
  bool rounds_tokens() const {
    return quantised() && !one_scale() && !converted() && !gate_up_.packed->has_smooth_scales();
  }
  RoundedRows rounded_tokens(const Batch& batch) const;
  RoundJob round_job(const Batch& batch) const;
  struct NumberPlaces;  // of rows that are converted()
  void set_codes(const RoundedRows& rows, const NumberPlaces& numbers, Workspace workspace,
                 DecodeArgs& args) const;
  RoundedRows rounded_rows(int64_t cols, void* codes, void* scales) const;
  int32_t scale_groups(int64_t cols) const;
  /// Whether down rounds its input as it loads it; else a launch of its own does before.
  bool rounds_while_read(const Batch& batch) const;
  /// Whether down adds up the rows of a single routed token: where that takes most of the GPU.
  bool sums_one_token() const;
  /// One activation scale for a whole tensor.
  bool one_scale() const { return activations_ == ActivationFormat::kFp8PerTensor; }
  /// Whether codes become other numbers once they are rounded: MX rows become bf16 where the
  /// weights do, else E4M3 with a scale per row.
  bool converted() const { return is_mx(activations_); }
  bool expanded() const {
    return converted() && gate_up_.packed->rows().fragments.order == FragmentOrder::kBf16;
  }
  int64_t number_row_bytes(int64_t cols) const {
    return expanded() ? cols * 2 : padded_row_bytes(Format::kFp8E4m3, cols);
  }
  void take_codes(WorkspaceCarver& carver, int64_t rows, int64_t cols, WorkspaceRegion& codes,
                  WorkspaceRegion& scales) const;
  NumberPlaces take_numbers(WorkspaceCarver& carver, int64_t rows, int64_t cols) const;
  void set_weights(const Matrix& matrix, DecodeArgs& args) const;
  void multiply(const Matrix& matrix, const DecodeArgs& args, Stream stream) const;
  bool quantised() const { return activations_ != ActivationFormat::kNone; }

  LayerSpec spec_;
  ActivationFormat activations_;
  int device_;
  int num_ctas_;
  Matrix gate_up_, down_;
};

}  // namespace switchyard::cuda::sm90
