#pragma once
// One matrix applied to every token: router, shared gate, latent projections.

#include "backend.h"
#include "cuda/pack_weights.h"

namespace switchyard::cuda {

class CudaLinear final : public PackedLinear {
 public:
  CudaLinear(const WeightMatrix& matrix, const TensorView& bias, const LayerOptions& options);

  int64_t packed_bytes() const override { return weights_.bytes(); }
  int64_t workspace_bytes(int64_t) const override { return 0; }
  void run(const LinearArgs& args, Workspace workspace, Stream stream) const override;

 private:
  int device_;
  bool generic_;  ///< only the portable kernels
  PackedMatrices weights_;
};

}  // namespace switchyard::cuda
