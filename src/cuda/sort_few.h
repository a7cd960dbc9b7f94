#pragma once
// The path kFewTokens of core/sort_plan.h.

#include "cuda/launch.cuh"
#include "cuda/sort_batch.cuh"

namespace switchyard::cuda {

void sort_few(const SortParams& params, const LaunchShape& shape, cudaStream_t stream);

}  // namespace switchyard::cuda
