// One warp per token: its alphas 32 at a time, ranked by ballots.

#include "core/math.h"
#include "cuda/alpha_choice.h"
#include "cuda/launch.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kWarps = 4;

__global__ void __launch_bounds__(kWarps * 32)
    alpha_choice_kernel(const __grid_constant__ AlphaChoiceJob p) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (token >= p.num_tokens) return;
  const float* alpha = p.alpha + token * p.num_experts;
  int32_t* ids = p.topk_ids + token * p.top_k;
  int32_t used = 0;
  for (int32_t first = 0; first < p.num_experts; first += 32) {
    const int32_t expert = first + lane;
    const float weight = expert < p.num_experts ? alpha[expert] : 0.0f;
    const uint32_t chosen = __ballot_sync(~0u, weight != 0.0f);
    const int32_t slot = used + __popc(chosen & ((1u << lane) - 1));
    if (weight != 0.0f && slot < p.top_k) {
      ids[slot] = expert;
      p.topk_weights[token * p.top_k + slot] = weight;
    }
    used += __popc(chosen);
  }
  const bool crowded = used > p.top_k;
  __syncwarp();
  for (int32_t slot = (crowded ? 0 : used) + lane; slot < p.top_k; slot += 32) ids[slot] = -1;
  if (lane == 0) p.crowded[token] = crowded ? 1 : 0;
}

}  // namespace

void choose_by_alpha(const AlphaChoiceJob& job, Stream stream) {
  launch(alpha_choice_kernel,
         {.grid = static_cast<unsigned>(ceil_div<int64_t>(job.num_tokens, kWarps)),
          .block = kWarps * 32,
          .overlap_previous = can_overlap()},
         static_cast<cudaStream_t>(stream.handle), job);
}

}  // namespace switchyard::cuda
