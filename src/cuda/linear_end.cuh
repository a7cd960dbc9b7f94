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

/// Whether four neighbouring outputs may be written, and four addends read, with one access.
inline bool stores_fours(const LinearJob& job) {
  const auto aligned = [](const void* data, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
  };
  return job.weights.num_rows % 4 == 0 && aligned(job.addend, 16) &&
         aligned(job.output, 4 * element_bytes(job.output_type));
}

/// Of rows row .. row + 3, of which those past the end do not exist.
__device__ inline void finish_linear4(const LinearJob& job, int64_t token, int32_t row, float4 sum,
                                      bool fours) {
  float v[4] = {sum.x, sum.y, sum.z, sum.w};
  if (!fours) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i < job.weights.num_rows) finish_linear(job, token, row + i, v[i]);
    }
    return;
  }
  if (row >= job.weights.num_rows) return;
  const int64_t at = token * job.weights.num_rows + row;
  float4 addend{};
  if (job.addend != nullptr) addend = *reinterpret_cast<const float4*>(job.addend + at);
  const float added[4] = {addend.x, addend.y, addend.z, addend.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (job.weights.bias != nullptr) v[i] += job.weights.bias[row + i];
    if (job.sigmoid) v[i] = sigmoid(v[i]);
    if (job.addend != nullptr) v[i] += added[i];
  }
  if (job.output_type == DataType::kF32) {
    reinterpret_cast<float4*>(job.output)[at / 4] = {v[0], v[1], v[2], v[3]};
  } else if (job.output_type == DataType::kBf16) {
    reinterpret_cast<uint2*>(job.output)[at / 4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
  } else {
    reinterpret_cast<uint2*>(job.output)[at / 4] = {pack_f16(v[0], v[1]), pack_f16(v[2], v[3])};
  }
}

}  // namespace switchyard::cuda
