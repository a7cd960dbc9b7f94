// A warp routes a token and tells every block of the cluster which experts it chose; then every
// block ranks the whole batch by itself and writes the rows of its own tokens. A single token needs
// no more than its warp.

#include <bit>

#include "cuda/launch.cuh"
#include "cuda/route_token.cuh"
#include "cuda/sm90/decode_round.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/route_sort.h"
#include "cuda/sort_few.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kTokensPerBlock = kFewThreads / kLanes;

/// Groups of experts per warp of a kernel for so many slots: shared experts may need one more.
constexpr int few_groups(int slots) { return slots == 4 ? 1 : slots <= 16 ? 2 : 4; }

struct Params {
  RouteParams route;
  SortParams sort;
  RoundJob round;
  uint32_t num_blocks;  // that route: the first cluster; the others round
  bool by_choice;
};

struct Shared {
  SortFewShared sort;
  RouteScratch scratch[kTokensPerBlock];
  int32_t ids[kSortFewPairs];  // of all tokens, where several blocks route
};

__device__ void zero(const SortJob& job, int32_t at, int32_t step) {
  auto* vectors = static_cast<uint4*>(job.zeroed);
  for (int64_t i = at; i < job.zeroed_bytes / 16; i += step) vectors[i] = uint4{0, 0, 0, 0};
}

/// Marks the pairs of all blocks. Every block gets the ids and makes its own bitmaps: stores to
/// other blocks overlap, atomics to their bitmaps took 45 ns each.
__device__ void exchange_and_mark(const SortParams& p, Shared& s, uint32_t num_blocks,
                                  const FewPair& own, int slot, int32_t num_tokens) {
  const int32_t top_k = p.job.top_k;
  cluster_wait();  // the others have begun
  if (slot < top_k && own.token < p.job.tokens.limit) {
    for (uint32_t rank = 0; rank < num_blocks; ++rank) {
      cluster_store(shared_address_in(s.ids + own.token * top_k + slot, rank), own.id);
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();
  constexpr int kPairs = static_cast<int>(kSortFewPairs) / kFewThreads;
  FewPair pairs[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int32_t pair = thread() + i * kFewThreads;
    const int32_t token = token_of(p, pair);
    pairs[i] = token < num_tokens ? FewPair{s.ids[pair], token} : FewPair{-1, 0};
  }
  mark_pairs(p.job, s.sort, pairs);
}

template <int kSlots, RouteKind kKind>
__global__ void __launch_bounds__(kFewThreads)
    route_sort_kernel(const __grid_constant__ Params params) {
  __shared__ Shared s;
  const SortParams& p = params.sort;
  const RouteJob& job = params.route.job;
  if (blockIdx.x >= params.num_blocks) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    return round_rows(params.round, static_cast<int32_t>(blockIdx.x - params.num_blocks),
                      s.scratch[0].keys);
  }
  const uint32_t num_blocks = params.num_blocks;
  const int32_t at = static_cast<int32_t>(blockIdx.x) * kFewThreads + thread();
  FewPair own{-1, at / kLanes};
  TokenRouter<kSlots, kKind> router(params.route, s.scratch[thread() / kLanes]);
  if (own.token < job.tokens.limit) router.load_biases();
  clear_few(s.sort);
  if (num_blocks > 1) cluster_arrive();
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();

  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
  constexpr int kGroups = few_groups(kSlots);
  bool local[kGroups];
  load_few_mask(p.job, local);
  const int slot = lane();
  float weight = 0.0f;
  if (own.token < job.tokens.limit) {
    router.route(own.token, own.token < num_tokens, [&](int k, int32_t id, float its_weight) {
      own.id = id;
      weight = its_weight;
      write_choice(job, own.token, k, id, its_weight);
    });
  }
  __syncwarp();
  if (num_blocks > 1) {
    exchange_and_mark(p, s, num_blocks, own, slot, num_tokens);
  } else {
    const FewPair pairs[] = {own};
    mark_pairs(p.job, s.sort, pairs);
  }
  __syncthreads();

  const auto experts = place_few_experts(p, s.sort, local, false, 0);
  const int32_t rank = own.id >= 0 ? rank_of_few(s.sort, own.id, own.token) : 0;
  __syncthreads();
  if (own.token < job.tokens.limit && slot < p.job.top_k) {
    const int32_t pair = own.token * p.job.top_k + slot;
    write_few_pair(p, s.sort, own, rank, pair, __float_as_int(weight));
  }
  list_few_blocks(p, s.sort, experts);
  __syncthreads();
  const auto step = static_cast<int32_t>(num_blocks) * kFewThreads;
  write_few_lists(p, s.sort, num_tokens, at, step);
  zero(p.job, at, step);
}

/// What the lists of a single token hold whatever it chooses, by thread `at` of `step`: a block for
/// each choice, of which the first row is the choice's.
__device__ void write_single_lists(const SortParams& p, int32_t at, int32_t step) {
  const SortJob& job = p.job;
  const int32_t padding = pack_pair(job.tokens.limit, job.top_k);
  const int32_t num_rows = job.top_k * job.unit_size;
#pragma unroll 1
  for (int32_t row = at; row < job.capacity; row += step) {
    const bool first = quotient(row, p.unit_inverse) * job.unit_size == row;
    if (row >= num_rows || !first) write_row(job, row, padding, 0);
  }
#pragma unroll 1
  for (int32_t block = job.top_k + at; block < job.num_blocks; block += step) {
    job.sorted_expert_ids[block] = -1;
  }
  if (at > 0) return;
  job.num_valid_ids[0] = num_rows;
  if (job.num_valid > 1) job.num_valid_ids[1] = 1;
}

/// A single token, all of whose choices are experts: one warp routes it and ranks the choices among
/// its lanes, while the others write the rest of the lists.
template <int kSlots, RouteKind kKind>
__global__ void __launch_bounds__(kFewThreads)
    route_sort_single_kernel(const __grid_constant__ Params params) {
  __shared__ RouteScratch s;
  const SortJob& job = params.sort.job;
  if (thread() >= kLanes || blockIdx.x > 0) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (blockIdx.x > 0) {
      return round_rows(params.round, static_cast<int32_t>(blockIdx.x) - 1, s.keys);
    }
    constexpr int kOthers = kFewThreads - kLanes;
    write_single_lists(params.sort, thread() - kLanes, kOthers);
    return zero(job, thread() - kLanes, kOthers);
  }
  TokenRouter<kSlots, kKind> router(params.route, s);
  router.load_biases();
  wait_for_previous_kernel();
  let_next_kernel_start();
  int32_t id = INT32_MAX;
  float weight = 0.0f;
  router.route(0, true, [&](int, int32_t its_id, float its_weight) {
    id = its_id;
    weight = its_weight;
  });
  const int slot = lane();
  int32_t rank = slot;
  if (!params.by_choice) {
    __syncwarp();
    rank = 0;
#pragma unroll 1
    for (int other = 0; other < job.top_k; ++other) {
      rank += __shfl_sync(kAllLanes, id, other) < id ? 1 : 0;
    }
  }
  if (slot >= job.top_k) return;
  const int32_t row = rank * job.unit_size;
  job.sorted_expert_ids[rank] = id;
  write_row(job, row, pack_pair(0, slot), __float_as_int(weight));
  write_pair(job, slot, row, id);
  write_choice(params.route.job, 0, slot, id, weight);
}

using Kernel = void (*)(Params);
struct Kernels {
  template <int kSlots, RouteKind kKind>
  static Kernel get() {
    return route_sort_kernel<kSlots, kKind>;
  }
};
struct SingleKernels {
  template <int kSlots, RouteKind kKind>
  static Kernel get() {
    return route_sort_single_kernel<kSlots, kKind>;
  }
};
template <class TheseKernels>
Kernel kernel_for(int slots, RouteKind kind) {
  switch (slots) {
    case 4: return route_kernel_of<TheseKernels, 4>(kind);
    case 8: return route_kernel_of<TheseKernels, 8>(kind);
    case 16: return route_kernel_of<TheseKernels, 16>(kind);
    default: return route_kernel_of<TheseKernels, 32>(kind);
  }
}

}  // namespace

bool can_route_sort(int64_t num_routed, int64_t num_experts) {
  return num_routed <= kFewExperts &&
         num_experts <= few_groups(route_slots(static_cast<int32_t>(num_routed))) * kFewThreads;
}

void route_sort(const RouteJob& route, const SortJob& sort, const RoundJob& round, Stream stream,
                bool by_choice) {
  const int64_t num_tokens = sort.tokens.limit;
  const SortPlan plan = plan_sort(num_tokens, sort.top_k, sort.num_experts, sort.unit_size);
  Params params{.route = route_params(route),
                .sort = sort_params(sort, plan, nullptr),
                .round = round,
                .by_choice = by_choice};
  const bool single =
      num_tokens == 1 && sort.tokens.on_device == nullptr && sort.expert_mask == nullptr;
  const int slots = route_slots(route.num_experts);
  const Kernel kernel = single ? kernel_for<SingleKernels>(slots, params.route.kind)
                               : kernel_for<Kernels>(slots, params.route.kind);
  // A token per warp; warps without one help to write the lists.
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(num_tokens, kTokensPerBlock));
  const unsigned cluster = std::bit_ceil(blocks);
  params.num_blocks = cluster;
  const auto rounders = static_cast<unsigned>(round.blocks(kFewThreads));
  launch(kernel,
         {.grid = align_up(cluster + rounders, cluster),
          .block = kFewThreads,
          .overlap_previous = true,
          .cluster = cluster},
         static_cast<cudaStream_t>(stream.handle), params);
}

}  // namespace switchyard::cuda::sm90
