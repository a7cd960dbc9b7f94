#pragma once
// The experts of a layer on Hopper: which kernels take a batch, and the steps in order.

#include <optional>

#include "core/activation_format.h"
#include "core/down_sum_schedule.h"
#include "core/fp4_prefill_cost.h"
#include "core/kernel_family.h"
#include "core/workspace_layout.h"
#include "cuda/combine.h"
#include "cuda/device_buffer.h"
#include "cuda/quantize.h"
#include "cuda/sm90/decode_experts.h"
#include "cuda/sm90/grouped_gemm.h"
#include "cuda/token_count.h"
#include "cuda/tuned_experts.h"

namespace switchyard::cuda::sm90 {

/// Where the intermediates of a call lie. A batch goes through in chunks of at most chunk_tokens.
struct Sm90Workspace {
  int64_t chunk_tokens = 0;
  DownSumPlan slabs;              // of such a chunk
  WorkspaceRegion tile_counters;  // of gate_up and down, zeroed by the sort with slab_counters
  WorkspaceRegion slab_counters;  // of down_sum
  WorkspaceRegion pair_rows;      // [T, K], of down_sum
  WorkspaceRegion sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, sort_scratch;
  WorkspaceRegion input_codes, input_scales;    // of quantised activations
  WorkspaceRegion mx_codes, mx_scales;          // of MX activations on their way to the codes
  WorkspaceRegion hidden;                       // [sorted rows, I] bf16
  WorkspaceRegion hidden_codes, hidden_scales;  // [sorted rows, ...]
  WorkspaceRegion expert_output;                // [pairs, W] bf16, or down_sum's ring
  int64_t bytes = 0;
};

/// One matrix multiplication of the layer: its weights and what was prepared for them once.
struct Sm90Matrices {
  WeightRows rows{};
  DeviceBuffer block_scales;  ///< empty: a scale per weight row, or none
  Scaling scaling = Scaling::kNone;
  bool deep = false;  ///< GroupedGemmJob::deep_scales
  const float* block_scale_data() const { return block_scales.as<const float>(); }
};

class Sm90Experts final : public TunedExperts {
 public:
  /// Why there are no tuned kernels for this layer, or null.
  static const char* why_unsupported(const LayerSpec& spec, const PackedMatrices& gate_up,
                                     const PackedMatrices& down);
  /// Throws kUnsupported when scales turn out not to follow 128 x 128 blocks.
  Sm90Experts(const LayerSpec& spec, const PackedMatrices& gate_up, const PackedMatrices& down,
              int device);

  const char* why_unsupported(DataType hidden_states, DataType output) const override;
  int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const override;
  void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
            Plan& plan) const override;
  void run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const override;
  bool run_stage(const StageJob& job, Workspace workspace, Stream stream) const override;

 private:
  /// One chunk of a batch: what its steps have in common.
  struct Batch {
    const RunExpertsArgs& args;
    int64_t begin;  ///< tokens before it
    TokenCount tokens;
    GroupedGemmConfigs configs;
    SortedRows sorted;
    int64_t capacity;  ///< sorted rows, padding included
    const Sm90Workspace& layout;
    Workspace workspace;
    Stream stream;
  };
  /// Of a batch in chunks of just so many tokens.
  Sm90Workspace layout(int64_t chunk_tokens, int64_t top_k) const;
  /// Down and combine of a chunk in one kernel, or plan.fits = false.
  DownSumBatch slab_batch(int64_t num_tokens, int64_t top_k) const;
  DownSumPlan plan_slabs(int64_t num_tokens, int64_t top_k) const;
  /// Both GEMMs of a chunk, as the cost model sees them.
  LayerGemmWork work_of(int64_t num_tokens, int64_t top_k) const;
  /// One of them, of weights in fragment order.
  Fp4PrefillWork fragment_work(const Sm90Matrices& matrices, const GroupedGemmWork& work) const;
  /// Expert outputs of smaller batches are not summed in slabs.
  int64_t min_slab_bytes() const;
  /// The cheapest ones.
  GroupedGemmConfigs select_configs(int64_t num_tokens, int64_t top_k) const;
  void prepare(Sm90Matrices& matrices, const PackedMatrices& packed) const;

  /// Whether a batch goes through the decode kernels.
  bool is_decode(int64_t num_tokens, int64_t top_k) const;
  LayerMatrix layer_matrix(const Sm90Matrices& matrices) const;
  /// Expected time, less what the decode kernels take around their GEMMs.
  double prefill_us(int64_t num_tokens, int64_t top_k) const;
  double gemm_us(const Sm90Matrices& matrices, const GroupedGemmWork& work,
                 const GroupedGemmConfig& config) const;

  /// A batch goes through in chunks of so many tokens.
  int64_t chunk_tokens(int64_t num_tokens, int64_t top_k) const;
  /// Expected time of a chunk, its sums included.
  double chunk_us(int64_t num_tokens, int64_t top_k) const;
  /// Of the largest chunk that is summed in slabs, or 0.
  int64_t most_slab_tokens(int64_t top_k) const;

  // The steps, in order.
  Batch sort(const RunExpertsArgs& args, int64_t begin, int64_t num_tokens,
             const Sm90Workspace& layout, Workspace workspace, Stream stream) const;
  /// The chunk's tokens in the activation format (or as they are), and how rows find theirs.
  StoredRows quantize_input(const Batch& batch, RowSource& source) const;
  /// Whether gate_up's kernel rounds the intermediate for down: under some config, under this one.
  bool may_round_hidden() const;
  bool rounds_hidden(const GroupedGemmConfigs& configs) const;
  /// The intermediate, in the activation format.
  StoredRows gate_up(const Batch& batch, const StoredRows& input, RowSource source) const;
  StoredRows quantize_hidden(const Batch& batch) const;
  /// Rounds the sorted pairs' rows, each as its expert wants it, instead of every row.
  static void follow_sorted(const Batch& batch, QuantizeJob& job);
  /// Quantises as `job` says and makes MX codes E4M3 ones with a scale per row, or bf16 numbers.
  StoredRows quantize_mx(const Batch& batch, QuantizeJob job, TokenCount rows) const;
  void down(const Batch& batch, const StoredRows& hidden) const;
  void combine(const Batch& batch) const;
  /// The two above in one.
  void down_and_combine(const Batch& batch, const StoredRows& hidden) const;
  GroupedGemmJob down_job(const Batch& batch, const StoredRows& hidden) const;
  CombineJob combine_job(const Batch& batch) const;

  /// Of a stage alone: the intermediates, and the cheapest config whose tiles divide the caller's
  /// blocks, if there is one.
  Sm90Workspace stage_layout(int64_t num_tokens, int64_t top_k) const;
  std::optional<GroupedGemmConfig> stage_config(const StageJob& job) const;
  StoredRows quantize_stage(const Batch& batch, const StageJob& job, RowSource source) const;
  void prefill_stage(const StageJob& job, const GroupedGemmConfig& config, Workspace workspace,
                     Stream stream) const;

  /// The job on the kernel for its weights.
  void multiply(const Batch& batch, const GroupedGemmJob& job,
                const GroupedGemmConfig& config) const;

  LayerSpec spec_;
  ActivationFormat activations_;
  int device_;
  Sm90Matrices gate_up_, down_;
  std::optional<DecodeExperts> decode_;
  bool has_prefill_;  ///< else any batch goes through decode_
};

}  // namespace switchyard::cuda::sm90
