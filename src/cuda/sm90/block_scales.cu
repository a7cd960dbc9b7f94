// The scales of 128 x 128 weight blocks, from the generic layout (one per row and group) to one
// pair per tile and group, and the check that this loses nothing.

#include "cuda/launch.cuh"
#include "cuda/sm90/grouped_gemm.h"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kTileRows = 128;

__global__ void block_scale_kernel(const float* scales, int32_t num_rows, int32_t num_groups,
                                   float2* table, int32_t* mixed) {
  const int64_t tile = blockIdx.x;
  const int64_t expert = blockIdx.y;
  const int64_t first = tile * kTileRows;
  const float* of_expert = scales + expert * num_rows * num_groups;
  for (int g = static_cast<int>(threadIdx.x); g < num_groups; g += static_cast<int>(blockDim.x)) {
    const auto scale = [&](int64_t row) { return of_expert[row * num_groups + g]; };
    const float even = scale(first);
    const float odd = first + 1 < num_rows ? scale(first + 1) : even;
    for (int64_t row = first; row < first + kTileRows && row < num_rows; ++row) {
      if (scale(row) != (row % 2 == 0 ? even : odd)) *mixed = 1;
    }
    table[(expert * gridDim.x + tile) * num_groups + g] = {even, odd};
  }
}

}  // namespace

void block_scale_table(const WeightRows& weights, int64_t num_experts, float* table, int32_t* mixed,
                       Stream stream) {
  const auto tiles = static_cast<unsigned>(ceil_div(weights.num_rows, kTileRows));
  launch(block_scale_kernel,
         {.grid = dim3(tiles, static_cast<unsigned>(num_experts)), .block = 128},
         static_cast<cudaStream_t>(stream.handle), static_cast<const float*>(weights.rows.scales),
         weights.num_rows, weights.rows.num_groups, reinterpret_cast<float2*>(table), mixed);
}

}  // namespace switchyard::cuda::sm90
