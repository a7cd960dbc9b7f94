#pragma once
// One matrix applied to every token: router, shared gate, latent projections.

#include <optional>

#include "backend.h"
#include "core/linear_choice.h"
#include "cuda/pack_weights.h"
#include "cuda/sm90/linear_gemm.h"

namespace switchyard::cuda {

class CudaLinear final : public PackedLinear {
 public:
  CudaLinear(const WeightMatrix& matrix, const TensorView& bias, const LayerOptions& options);

  int64_t packed_bytes() const override { return weights_.bytes() + parts_.bytes(); }
  int64_t workspace_bytes(int64_t) const override { return 0; }
  LinearStep step(int64_t num_tokens) const override;
  void run(const LinearArgs& args, Workspace workspace, Stream stream) const override;

 private:
  /// For bf16 tokens, which are the usual ones.
  LinearKernel kernel_for(int64_t num_tokens) const;

  int device_;
  bool generic_;  ///< only the portable kernels
  PackedMatrices weights_;
  PackedMatrices parts_;  ///< of f32 weights, for the matrix unit
  std::optional<sm90::LinearGemmWeights> gemm_weights_;
};

}  // namespace switchyard::cuda
