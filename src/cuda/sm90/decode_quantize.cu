// Quantises the hidden states of a decode batch while the weights already stream.

#include "cuda/launch.cuh"
#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/decode_round.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads)
    decode_quantize_kernel(const __grid_constant__ RoundJob job) {
  __shared__ float maxima[kThreads / 32];
  wait_for_previous_kernel();
  // Not before: what comes next may rely on everything that this kernel waited for.
  let_next_kernel_start();
  round_rows(job, static_cast<int32_t>(blockIdx.x), maxima);
}

}  // namespace

void decode_quantize(const RoundJob& job, Stream stream) {
  launch(decode_quantize_kernel,
         {.grid = static_cast<unsigned>(job.blocks(kThreads)),
          .block = kThreads,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), job);
}

}  // namespace switchyard::cuda::sm90
