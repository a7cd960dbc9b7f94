#pragma once
// The routed (or shared) experts of one layer on a GPU: packed weights, and the steps over them
// with the generic kernels.

#include "backend.h"
#include "core/activation_format.h"
#include "core/workspace_layout.h"
#include "cuda/grouped_gemm.h"
#include "cuda/pack_weights.h"
#include "cuda/quantize.h"
#include "cuda/route_sort.h"
#include "cuda/tuned_experts.h"

namespace switchyard::cuda {

/// Where the intermediates of a call lie. A batch goes through in chunks of at most chunk_tokens.
struct ExpertsWorkspace {
  int64_t chunk_tokens = 0;
  WorkspaceRegion topk_ids, topk_weights, crowded;  // of dense, and where what tuned kernels take
  int64_t tuned_begin = 0;                          // may begin
  WorkspaceRegion sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, sort_scratch;
  WorkspaceRegion input_codes, input_scales;  // of quantised activations
  WorkspaceRegion hidden;                     // [rows, I] f32
  WorkspaceRegion hidden_codes, hidden_scales;
  WorkspaceRegion expert_output;  // [rows, W] f32
  int64_t bytes = 0;
};

class CudaExperts final : public PackedExperts {
 public:
  CudaExperts(const LayerSpec& spec, const ExpertSource& source, const LayerOptions& options);

  int64_t packed_bytes() const override { return gate_up_.bytes() + down_.bytes(); }
  int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const override;
  void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
            Plan& plan) const override;
  /// As the tensor cores take them, where they may.
  DataType latent_type(DataType hidden_states) const override {
    return tuned_ != nullptr && hidden_states == DataType::kBf16 ? hidden_states : DataType::kF32;
  }
  bool routes(int64_t num_tokens) const override {
    return can_route_and_sort(spec_, num_tokens, device_);
  }
  void run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const override;
  void gate_up(const ops::GateUpArgs& args, Workspace workspace, Stream stream) const override;
  void down(const ops::DownArgs& args, Workspace workspace, Stream stream) const override;
  void dense(const ops::DenseArgs& args, Workspace workspace, Stream stream) const override;

 private:
  /// One chunk of a batch: what its steps have in common.
  struct Batch {
    GemmRowMap map{};
    ExpertsWorkspace layout{};
    Workspace workspace{};
    Stream stream{};
  };
  ExpertsWorkspace layout(int64_t max_tokens, int64_t top_k) const;
  Batch sort_chunk(const RunExpertsArgs& args, int64_t begin, int64_t num_tokens,
                   const ExpertsWorkspace& layout, Workspace workspace, Stream stream) const;
  void run_chunk(const RunExpertsArgs& args, int64_t begin, const Batch& batch) const;
  void gate_up_rows(const Batch& batch, const TensorView& input, void* output,
                    DataType output_type) const;
  GemmJob down_job(const Batch& batch, const TensorView& input) const;
  /// The GEMM's input: `input` as it is, or rounded to the activation format.
  StoredRows stored_input(const Batch& batch, const TensorView& input, bool per_pair,
                          const PackedMatrices& weights, WorkspaceRegion codes,
                          WorkspaceRegion scales, bool& input_per_pair) const;
  /// Dense for the tokens with at most top_k experts: like a layer, from lists of them.
  void run_chosen(const ops::DenseArgs& args, const ExpertsWorkspace& layout, Workspace workspace,
                  Stream stream) const;
  bool rounds_activations() const { return activations_ != ActivationFormat::kNone; }

  LayerSpec spec_;
  ActivationFormat activations_;
  int device_;
  PackedMatrices gate_up_;
  PackedMatrices down_;
  std::unique_ptr<TunedExperts> tuned_;  // or null, because
  std::string why_not_tuned_;
};

/// f32, bf16 or f16 rows as the caller has them.
StoredRows plain_rows(const TensorView& input);

}  // namespace switchyard::cuda
