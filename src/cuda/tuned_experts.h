#pragma once
// Kernels made for one kind of GPU: where a layer has them, its experts run through them, and the
// generic kernels take what they leave.

#include <cstdint>
#include <memory>

#include "backend.h"
#include "cuda/grouped_gemm.h"
#include "cuda/pack_weights.h"

namespace switchyard::cuda {

/// Tuned kernels move rows in pieces of 16 bytes.
inline bool on_16_bytes(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

/// gate_up or down alone, on lists that the caller sorted (ops::GateUpArgs, ops::DownArgs).
struct StageJob {
  bool is_down = false;
  GemmRowMap map{};
  TensorView input{};   ///< [T, H]; of down [T, K, I]
  TensorView output{};  ///< [T, K, I]; of down [T, K, H]
};

class TunedExperts {
 public:
  virtual ~TunedExperts() = default;
  /// Why run() cannot take tensors of these types, or null.
  virtual const char* why_unsupported(DataType hidden_states, DataType output) const = 0;
  virtual int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const = 0;
  virtual void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
                    Plan& plan) const = 0;
  virtual void run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const = 0;
  /// False, and nothing done, where no tuned kernel takes these types, unit or addresses.
  virtual bool run_stage(const StageJob& job, Workspace workspace, Stream stream) const = 0;
};

/// For packed experts that outlive it. Null when there is none, with the reason in `why_not`.
std::unique_ptr<TunedExperts> tuned_experts(const LayerSpec& spec, const PackedMatrices& gate_up,
                                            const PackedMatrices& down, int device,
                                            std::string& why_not);

}  // namespace switchyard::cuda
