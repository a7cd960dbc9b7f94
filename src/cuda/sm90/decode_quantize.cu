// Quantises the hidden states of a decode batch while the weights already stream: one warp per
// token and group of columns.

#include "cuda/launch.cuh"
#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/decode_round.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    decode_quantize_kernel(const __grid_constant__ RoundedRows to, const void* from, DataType type,
                           TokenCount rows) {
  wait_for_previous_kernel();
  // Not before: what comes next may rely on everything that this kernel waited for.
  let_next_kernel_start();
  const int32_t groups = ceil_div(to.num_columns, to.group_columns);
  const int32_t warp = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x) / 32;
  const int32_t row = warp / groups;
  if (row < rows.value()) round_group(to, from, type, row, warp % groups, nullptr);
}

}  // namespace

void decode_quantize(const RoundedRows& to, const void* from, DataType type, const TokenCount& rows,
                     Stream stream) {
  const int64_t warps = rows.limit * ceil_div(to.num_columns, to.group_columns);
  launch(decode_quantize_kernel,
         {.grid = static_cast<unsigned>(ceil_div<int64_t>(warps * 32, kThreads)),
          .block = kThreads,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), to, from, type, rows);
}

}  // namespace switchyard::cuda::sm90
