// A warp routes a token and tells every block of the cluster which experts it chose; then every
// block ranks the whole batch by itself and writes the rows of its own tokens.

#include "cuda/launch.cuh"
#include "cuda/route_token.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/route_sort.h"
#include "cuda/sort_batch.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kMaxWarps = 16;

struct Params {
  RouteParams route;
  SortParams sort;
};

__device__ void zero(const SortJob& job, int32_t at, int32_t step) {
  auto* vectors = static_cast<uint4*>(job.zeroed);
  for (int64_t i = at; i < job.zeroed_bytes / 16; i += step) vectors[i] = uint4{0, 0, 0, 0};
}

template <int kSlots>
__global__ void __launch_bounds__(kMaxWarps* kLanes)
    route_sort_kernel(const __grid_constant__ Params params) {
  const SortParams& p = params.sort;
  const RouteJob& job = params.route.job;
  const SortShared s = carve_sort(p);
  auto* scratch = reinterpret_cast<RouteScratch*>(
      align_up<uint64_t>(reinterpret_cast<uint64_t>(s.rest), alignof(RouteScratch)));
  const uint32_t num_blocks = gridDim.x;  // one cluster
  clear_bitmaps(p, s);
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
  const uint32_t* word = s.bitmaps + (id < 0 ? 0 : id * p.bitmap_words + token / 32);
  const uint32_t bit = 1u << (token % 32);
  if (num_blocks > 1) {
    cluster_wait();  // the others' bitmaps are clear
    for (uint32_t rank = 0; id >= 0 && rank < num_blocks; ++rank) {
      cluster_or(shared_address_in(word, rank), bit);
    }
    __syncwarp();
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
    if (id >= 0) cluster_or(shared_address(word), bit);
    __syncthreads();
  }

  const Placed placed = place_experts(p, s, [&](int e) { return count_bits(p, s, e); });
  const bool chosen = id >= 0 && s.local_id[id] >= 0;
  const int32_t row = chosen ? s.first_block[id] * p.job.unit_size + rank_of(p, s, id, token) : -1;
  const int slot = thread() % kLanes;
  if (chosen) write_row(p.job, row, pack_pair(token, slot), __float_as_int(weight));
  if (token < job.tokens.limit && slot < p.job.top_k) {
    write_pair(p.job, token * p.job.top_k + slot, row, chosen ? s.local_id[id] : -1);
  }
  const auto step = static_cast<int32_t>(num_blocks) * num_threads();
  finish_lists(p, s, placed, num_tokens, at, step);
  zero(p.job, at, step);
}

}  // namespace

void route_sort(const RouteJob& route, const SortJob& sort, Stream stream) {
  if (sort.tokens.limit == 0) return;
  const int64_t num_tokens = sort.tokens.limit;
  const SortPlan plan = plan_sort(num_tokens, sort.top_k, sort.num_experts, sort.unit_size);
  const Params params{.route = route_params(route), .sort = sort_params(sort, plan, nullptr)};
  const auto kernel = [&] {
    switch (route_slots(route.num_experts)) {
      case 4: return route_sort_kernel<4>;
      case 8: return route_sort_kernel<8>;
      case 16: return route_sort_kernel<16>;
      default: return route_sort_kernel<32>;
    }
  }();
  // A token per warp. A cluster's barriers cost 0.4 us, twice the warps of a block less.
  const int64_t warps = num_tokens <= 8 ? 8 : num_tokens <= kMaxWarps ? kMaxWarps : 8;
  const auto blocks = static_cast<unsigned>(ceil_div(num_tokens, warps));
  const unsigned cluster = blocks <= 2 ? blocks : blocks <= 4 ? 4 : 8;
  launch(kernel,
         {.grid = cluster,
          .block = static_cast<unsigned>(warps * kLanes),
          .shared_bytes = plan.shared_bytes + static_cast<int64_t>(alignof(RouteScratch)) +
                          warps * static_cast<int64_t>(sizeof(RouteScratch)),
          .overlap_previous = true,
          .cluster = cluster},
         static_cast<cudaStream_t>(stream.handle), params);
}

}  // namespace switchyard::cuda::sm90
