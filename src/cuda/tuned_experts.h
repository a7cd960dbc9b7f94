#pragma once
// Kernels made for one kind of GPU: where a layer has them, its experts run through them, and the
// generic kernels take what they leave.

#include <memory>

#include "backend.h"
#include "cuda/pack_weights.h"

namespace switchyard::cuda {

class TunedExperts {
 public:
  virtual ~TunedExperts() = default;
  /// Why run() cannot take tensors of these types, or null.
  virtual const char* why_unsupported(DataType hidden_states, DataType output) const = 0;
  virtual int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const = 0;
  virtual void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
                    Plan& plan) const = 0;
  virtual void run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const = 0;
};

/// For packed experts that outlive it. Null when there is none, with the reason in `why_not`.
std::unique_ptr<TunedExperts> tuned_experts(const LayerSpec& spec, const PackedMatrices& gate_up,
                                            const PackedMatrices& down, int device,
                                            std::string& why_not);

}  // namespace switchyard::cuda
