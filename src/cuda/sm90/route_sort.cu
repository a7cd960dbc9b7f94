// A warp routes a token and tells every block of the cluster which experts it chose; then every
// block ranks the whole batch by itself and writes the rows of its own tokens.

#include "cuda/launch.cuh"
#include "cuda/route_token.cuh"
#include "cuda/sm90/decode_round.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/route_sort.h"
#include "cuda/sort_batch.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kMaxWarps = 16;

struct Params {
  RouteParams route;
  SortParams sort;
  RoundJob round;
  uint32_t num_blocks;  // that route: the first cluster; the others round
  bool few_pairs;       // one block routes, and a warp compares all pairs with each other
};

/// At most a warp's pairs, a token after the other, and only the lists that every sort writes: no
/// bitmaps, whose clearing, counting and placing cost more than what few pairs have to say.
constexpr int64_t kFewPairs = 32, kFewTokens = kMaxWarps / 2;
bool are_few(const SortJob& job) {
  return job.tokens.limit <= kFewTokens && job.tokens.limit * job.top_k <= kFewPairs &&
         job.expert_mask == nullptr && job.local_topk_ids == nullptr && job.m_indices == nullptr &&
         job.reverse_sorted == nullptr;
}
__device__ void sort_few(const SortParams& p, const int32_t* ids, const int32_t* weights,
                         int32_t num_tokens, int32_t* rows_of_block) {
  const SortJob& job = p.job;
  const int32_t padding = pack_pair(job.tokens.limit, job.top_k);
  if (thread() < kLanes) {
    const auto num_pairs = static_cast<int32_t>(job.tokens.limit) * job.top_k;
    const int32_t pair = thread();
    const int32_t id = pair < num_pairs ? ids[pair] : -1;
    const uint32_t alike = __match_any_sync(~0u, id);
    const int32_t before = __popc(alike & ((1u << pair) - 1u));
    const int32_t blocks = id >= 0 && before == 0 ? blocks_of(p, __popc(alike)) : 0;
    int32_t first_block = 0;
    for (int32_t other = 0; other < num_pairs; ++other) {
      const bool lower = __shfl_sync(~0u, id, other) < id;
      first_block += __shfl_sync(~0u, blocks, other) * (lower ? 1 : 0);
    }
    if (id >= 0) {
      const int32_t token = token_of(p, pair);
      write_row(job, first_block * job.unit_size + before,
                pack_pair(token, pair - token * job.top_k), weights[pair]);
    }
    for (int32_t b = 0; b < blocks; ++b) {
      job.sorted_expert_ids[first_block + b] = id;
      rows_of_block[first_block + b] = __popc(alike) - b * job.unit_size;
    }
    const int32_t all = __reduce_add_sync(~0u, blocks);
    for (int32_t b = all + pair; b < job.num_blocks; b += kLanes) {
      job.sorted_expert_ids[b] = -1;
      rows_of_block[b] = 0;
    }
    if (pair == 0) {
      job.num_valid_ids[0] = all * job.unit_size;
      if (job.num_valid > 1) job.num_valid_ids[1] = num_tokens;
    }
  }
  __syncthreads();
  for (int32_t row = thread(); row < job.capacity; row += num_threads()) {
    const int32_t block = row / job.unit_size;
    if (row - block * job.unit_size >= rows_of_block[block]) write_row(job, row, padding, 0);
  }
}

__device__ void zero(const SortJob& job, int32_t at, int32_t step) {
  auto* vectors = static_cast<uint4*>(job.zeroed);
  for (int64_t i = at; i < job.zeroed_bytes / 16; i += step) vectors[i] = uint4{0, 0, 0, 0};
}

template <int kSlots>
__global__ void __launch_bounds__(kMaxWarps* kLanes)
    route_sort_kernel(const __grid_constant__ Params params) {
  const SortParams& p = params.sort;
  const RouteJob& job = params.route.job;
  if (blockIdx.x >= params.num_blocks) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    return round_rows(params.round, static_cast<int32_t>(blockIdx.x - params.num_blocks),
                      reinterpret_cast<float*>(sort_shared_memory));
  }
  const SortShared s = carve_sort(p);
  auto* ids = reinterpret_cast<int32_t*>(s.rest);  // [warps of the cluster][top_k]
  const int num_ids = static_cast<int>(params.num_blocks) * num_threads() / kLanes * p.job.top_k;
  auto* scratch = reinterpret_cast<RouteScratch*>(
      align_up<uint64_t>(reinterpret_cast<uint64_t>(ids + num_ids), alignof(RouteScratch)));
  const uint32_t num_blocks = params.num_blocks;
  if (!params.few_pairs) clear_bitmaps(p, s);
  if (num_blocks > 1) cluster_arrive();
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int32_t at = static_cast<int32_t>(blockIdx.x) * num_threads() + thread();
  const int32_t token = at / kLanes;
  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
  load_mask(p, s);
  int32_t id = -1;
  float weight = 0.0f;
  if (token < job.tokens.limit) {
    const int32_t first = token * p.job.top_k;
    TokenRouter<kSlots> router(params.route, scratch[thread() / kLanes]);
    router.route(token, token < num_tokens, [&](int k, int32_t chosen, float its_weight) {
      id = chosen;
      weight = its_weight;
      job.topk_ids[first + k] = chosen;
      job.topk_weights[first + k] = its_weight;
    });
  }
  const int slot = thread() % kLanes;
  if (params.few_pairs) {
    int32_t* weights = ids + kFewTokens * p.job.top_k;
    if (token < job.tokens.limit && slot < p.job.top_k) {
      ids[token * p.job.top_k + slot] = id;
      weights[token * p.job.top_k + slot] = __float_as_int(weight);
    }
    __syncthreads();
    sort_few(p, ids, weights, num_tokens, reinterpret_cast<int32_t*>(scratch));
    return zero(p.job, at, num_threads());
  }
  const auto mark = [&](int32_t expert, int32_t its_token) {
    atomicOr(s.bitmaps + expert * p.bitmap_words + its_token / 32, 1u << (its_token % 32));
  };
  __syncwarp();
  if (num_blocks > 1) {
    // Every block gets the ids and makes its own bitmaps: stores to other blocks overlap, atomics
    // to their bitmaps took 45 ns each.
    cluster_wait();  // the others have begun
    for (uint32_t rank = 0; slot < p.job.top_k && rank < num_blocks; ++rank) {
      cluster_store(shared_address_in(ids + token * p.job.top_k + slot, rank), id);
    }
    __syncwarp();
    cluster_arrive();
    cluster_wait();
    const auto num_pairs = static_cast<int32_t>(job.tokens.limit) * p.job.top_k;
    for (int32_t pair = thread(); pair < num_pairs; pair += num_threads()) {
      if (ids[pair] >= 0) mark(ids[pair], token_of(p, pair));
    }
  } else {
    __syncthreads();  // the bitmaps are clear
    if (id >= 0) mark(id, token);
  }
  __syncthreads();

  const Placed placed =
      place_experts(p, s, p.block_bits, [&](int e) { return count_bits(p, s, e); });
  const bool chosen = id >= 0 && s.local_id[id] >= 0;
  const int32_t row = chosen ? s.first_block[id] * p.job.unit_size + rank_of(p, s, id, token) : -1;
  if (chosen) write_row(p.job, row, pack_pair(token, slot), __float_as_int(weight));
  if (token < job.tokens.limit && slot < p.job.top_k) {
    write_pair(p.job, token * p.job.top_k + slot, row, chosen ? s.local_id[id] : -1);
  }
  const auto step = static_cast<int32_t>(num_blocks) * num_threads();
  finish_lists(p, s, placed, num_tokens, at, step);
  zero(p.job, at, step);
}

}  // namespace

void route_sort(const RouteJob& route, const SortJob& sort, const RoundJob& round, Stream stream) {
  const int64_t num_tokens = sort.tokens.limit;
  const SortPlan plan = plan_sort(num_tokens, sort.top_k, sort.num_experts, sort.unit_size);
  const auto kernel = [&] {
    switch (route_slots(route.num_experts)) {
      case 4: return route_sort_kernel<4>;
      case 8: return route_sort_kernel<8>;
      case 16: return route_sort_kernel<16>;
      default: return route_sort_kernel<32>;
    }
  }();
  // A token per warp; warps without one help to write the lists.
  const int64_t warps = num_tokens <= kMaxWarps ? kMaxWarps : kMaxWarps / 2;
  const auto blocks = static_cast<unsigned>(ceil_div(num_tokens, warps));
  const int64_t threads = warps * kLanes;
  const unsigned cluster = blocks <= 2 ? blocks : blocks <= 4 ? 4 : 8;
  const int64_t shared_bytes =
      (sort_common_words(sort.num_experts, plan.bitmap_words) + cluster * warps * sort.top_k) * 4 +
      static_cast<int64_t>(alignof(RouteScratch)) +
      warps * static_cast<int64_t>(sizeof(RouteScratch));
  const Params params{.route = route_params(route),
                      .sort = sort_params(sort, plan, nullptr),
                      .round = round,
                      .num_blocks = cluster,
                      .few_pairs = are_few(sort)};
  launch(kernel,
         {.grid = align_up(cluster + static_cast<unsigned>(round.blocks(threads)), cluster),
          .block = static_cast<unsigned>(threads),
          .shared_bytes = shared_bytes,
          .overlap_previous = true,
          .cluster = cluster},
         static_cast<cudaStream_t>(stream.handle), params);
}

}  // namespace switchyard::cuda::sm90
