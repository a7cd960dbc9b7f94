#include "cuda/sort_few.cuh"
#include "cuda/sort_few.h"

namespace switchyard::cuda {
namespace {

template <int kGroups, int kPairs>
__global__ void __launch_bounds__(kFewThreads)
    sort_few_kernel(const __grid_constant__ SortParams p) {
  __shared__ SortFewShared s;
  let_next_kernel_start();
  const SortJob& job = p.job;
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (block >= p.num_sorters) {
    wait_for_previous_kernel();
    return zero_piece<kFewThreads>(job, block - p.num_sorters);
  }
  clear_few(s);
  const int32_t num_pairs = static_cast<int32_t>(job.tokens.limit) * job.top_k;
  const int32_t at = block * kFewThreads + thread();  // of the pair that this thread writes
  FewPair own{-1, token_of(p, at)};
  FewPair pairs[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i] = {-1, token_of(p, thread() + i * kFewThreads)};
  __syncthreads();
  wait_for_previous_kernel();

#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int32_t pair = thread() + i * kFewThreads;
    if (pair < num_pairs) pairs[i].id = __ldcg(job.topk_ids + pair);
  }
  int32_t weight = 0;
  if (at < num_pairs) {
    own.id = __ldcg(job.topk_ids + at);
    weight = load_weight(job, at);
  }
  bool local[kGroups];
  load_few_mask(job, local);
  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
#pragma unroll
  for (FewPair& pair : pairs) {
    if (pair.token >= num_tokens) pair = {-1, 0};
  }
  if (own.token >= num_tokens) own.id = -1;

  const bool repeated = __syncthreads_or(mark_pairs(job, s, pairs) ? 1 : 0) != 0;
  const int32_t num_live = num_tokens * job.top_k;
  const auto experts = place_few_experts(p, s, local, repeated, num_live);
  int32_t rank = is_expert(job, own.id) ? rank_of_few(s, own.id, own.token) : 0;
  if (repeated) rank = count_few_ids(job, own.id, min(at, num_live));
  __syncthreads();
  if (at < num_pairs) write_few_pair(p, s, own, rank, at, weight);
  list_few_blocks(p, s, experts);
  __syncthreads();
  write_few_lists(p, s, num_tokens, at, p.num_sorters * kFewThreads);
}

template <int kGroups>
auto kernel_for(int64_t pairs_per_thread) {
  return pairs_per_thread <= 1   ? sort_few_kernel<kGroups, 1>
         : pairs_per_thread <= 2 ? sort_few_kernel<kGroups, 2>
                                 : sort_few_kernel<kGroups, 4>;
}

}  // namespace

void sort_few(const SortParams& params, const LaunchShape& shape, cudaStream_t stream) {
  const SortJob& job = params.job;
  const int64_t pairs = ceil_div(job.tokens.limit * job.top_k, kSortFewThreads);
  const int64_t experts = ceil_div<int64_t>(job.num_experts, kFewThreads);
  const auto kernel = experts <= 1   ? kernel_for<1>(pairs)
                      : experts <= 2 ? kernel_for<2>(pairs)
                                     : kernel_for<4>(pairs);
  launch(kernel, shape, stream, params);
}

}  // namespace switchyard::cuda
