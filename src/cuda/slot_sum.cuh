#pragma once
// How a token's slots are summed: f32, in slot order, whoever does it.

#include "cuda/vector_io.cuh"

namespace switchyard::cuda {

__device__ __forceinline__ void add_slot(float weight, const float (&value)[kVector],
                                         float (&sum)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum[j] = fmaf(weight, value[j], sum[j]);
}

}  // namespace switchyard::cuda
