// The choice of a caller with the fused shared experts behind it.

#include "core/math.h"
#include "cuda/launch.cuh"
#include "cuda/small_steps.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 256;

struct AppendParams {
  const int32_t* routed_ids;
  const float* routed_weights;
  int32_t top_k, columns, num_routed;
  float shared_weight;
  const float* shared_weights;
  TokenCount tokens;
  int32_t* topk_ids;
  float* topk_weights;
};

__global__ void __launch_bounds__(kThreads)
    append_shared_kernel(const __grid_constant__ AppendParams p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t token = at / p.columns;
  if (token >= p.tokens.limit) return;
  const auto k = static_cast<int32_t>(at - token * p.columns);
  int32_t id = -1;
  float weight = 0.0f;
  if (token < p.tokens.value()) {
    const bool routed = k < p.top_k;
    id = routed ? p.routed_ids[token * p.top_k + k] : p.num_routed + k - p.top_k;
    weight = routed                        ? p.routed_weights[token * p.top_k + k]
             : p.shared_weights != nullptr ? p.shared_weights[token]
                                           : p.shared_weight;
    if (routed && id >= p.num_routed) id = -1;  // it must not name a shared expert
  }
  p.topk_ids[at] = id;
  p.topk_weights[at] = weight;
}

}  // namespace

void append_shared(const AppendSharedArgs& args, Stream stream) {
  const int64_t num_tokens = args.topk_ids.extent(0);
  const int64_t columns = args.topk_ids.extent(1);
  if (num_tokens == 0) return;
  launch(append_shared_kernel,
         {.grid = static_cast<unsigned>(ceil_div<int64_t>(num_tokens * columns, kThreads)),
          .block = kThreads,
          .overlap_previous = can_overlap()},
         static_cast<cudaStream_t>(stream.handle),
         AppendParams{
             .routed_ids = args.routed_ids.as<const int32_t>(),
             .routed_weights = args.routed_weights.as<const float>(),
             .top_k = static_cast<int32_t>(args.routed_ids.extent(1)),
             .columns = static_cast<int32_t>(columns),
             .num_routed = static_cast<int32_t>(args.num_routed),
             .shared_weight = args.shared_weight,
             .shared_weights = args.shared_weights.as<const float>(),
             .tokens = {.limit = num_tokens, .on_device = args.num_tokens.as<const int32_t>()},
             .topk_ids = args.topk_ids.as<int32_t>(),
             .topk_weights = args.topk_weights.as<float>()});
}

}  // namespace switchyard::cuda
