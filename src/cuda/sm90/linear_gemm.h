#pragma once
// Linears of many tokens on Hopper: bf16 weights times bf16 tokens on the matrix unit, f32 sums.

#include <cuda.h>

#include "core/linear_choice.h"
#include "cuda/linear_dot.h"

namespace switchyard::cuda::sm90 {

/// A linear's weights as the copy engine reads them, for the linear's lifetime.
struct LinearGemmWeights {
  CUtensorMap map{};
  int32_t parts = 1;  ///< numbers that add up to a weight, side by side in blocks of K
};
/// Of plain bf16 rows, or of f32 ones packed by linear_parts().
LinearGemmWeights linear_gemm_weights(const WeightRows& packed, int32_t parts);

/// Whether the job's tokens can be read by the copy engine.
bool can_read_tokens(const LinearJob& job);

void linear_gemm(const LinearJob& job, const LinearGemmWeights& weights, LinearKernel kernel,
                 Stream stream);

}  // namespace switchyard::cuda::sm90
