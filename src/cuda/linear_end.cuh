#pragma once
// From a sum to an output of a linear.

#include "core/activation.h"
#include "cuda/linear_dot.h"
#include "cuda/vector_io.cuh"

namespace switchyard::cuda {

__device__ inline void finish_linear(const LinearJob& job, int64_t token, int32_t row, float sum) {
  const int64_t at = token * job.weights.num_rows + row;
  if (job.weights.bias != nullptr) sum += job.weights.bias[row];
  if (job.sigmoid) sum = sigmoid(sum);
  if (job.addend != nullptr) sum += job.addend[at];
  store_one(job.output, job.output_type, at, sum);
}

}  // namespace switchyard::cuda
