// The sorted lists of a batch whose tokens all take expert 0 (a shared expert): tokens in order.
// Further blocks round the tokens meanwhile.

#include "core/expert_sort.h"
#include "cuda/launch.cuh"
#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/decode_round.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads)
    single_expert_kernel(const __grid_constant__ SortJob job,
                         const __grid_constant__ RoundJob round) {
  __shared__ float maxima[kThreads / 32];
  let_next_kernel_start();
  wait_for_previous_kernel();
  if (blockIdx.x > 0) return round_rows(round, static_cast<int32_t>(blockIdx.x) - 1, maxima);
  const auto tokens = static_cast<int32_t>(job.tokens.value());
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t rows = align_up(tokens, job.unit_size);
  for (int32_t row = thread; row < rows; row += kThreads) {
    const bool used = row < tokens;
    job.sorted_ids[row] = used ? row : pack_pair(job.tokens.limit, 1);
    int32_t weight = __float_as_int(1.0f);
    if (job.topk_weights != nullptr && used) weight = job.topk_weights[row];
    job.sorted_weights[row] = weight;
    if (row % job.unit_size == 0) job.sorted_expert_ids[row / job.unit_size] = 0;
  }
  if (thread == 0) job.num_valid_ids[0] = rows;
  auto* words = static_cast<uint32_t*>(job.zeroed);
  for (int64_t i = thread; i < job.zeroed_bytes / 4; i += kThreads) words[i] = 0;
}

}  // namespace

void decode_single_expert(const SortJob& job, const RoundJob& round, Stream stream) {
  launch(single_expert_kernel,
         {.grid = 1 + static_cast<unsigned>(round.blocks(kThreads)),
          .block = kThreads,
          .overlap_previous = true},
         static_cast<cudaStream_t>(stream.handle), job, round);
}

}  // namespace switchyard::cuda::sm90
