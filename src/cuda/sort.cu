// The sort contract of ops.h; core/sort_plan.h describes the paths, and few tokens are
// sort_few.cu's. Blocks beside the sorting ones zero the output buffer meanwhile.

#include <bit>

#include "cuda/sm90/ptx.cuh"
#include "cuda/sort.h"
#include "cuda/sort_batch.cuh"
#include "cuda/sort_few.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = static_cast<int>(kSortThreads);

/// Consecutive pairs that are ranked together, and how many of them belong to tokens that exist.
struct Pass {
  int32_t first_token, first_pair, num_pairs, num_live;
};
__device__ int32_t live_pairs(const SortParams& p, int32_t tokens, int32_t left) {
  return max(0, min(tokens, left)) * p.job.top_k;
}
__device__ Pass pass_at(const SortParams& p, int32_t first_token, int32_t end_token,
                        int32_t num_tokens) {
  const int32_t tokens = min(p.tokens_per_pass, end_token - first_token);
  return {first_token, first_token * p.job.top_k, tokens * p.job.top_k,
          live_pairs(p, tokens, num_tokens - first_token)};
}

/// Some of a thread's pairs of a pass (every num_threads() one), loaded all at once.
struct HeldPairs {
  static constexpr int kCount = 4;
  int32_t ids[kCount];
  int32_t weights[kCount];
};
/// Those from pair `first` on, the thread's own; without weights where they are not needed.
template <bool kWeights>
__device__ HeldPairs hold_pairs(const SortParams& p, const Pass& pass, int32_t first) {
  HeldPairs held;
#pragma unroll
  for (int i = 0; i < HeldPairs::kCount; ++i) {
    const int32_t pair = first + i * num_threads();
    const bool exists = pair < pass.num_pairs;
    held.ids[i] = exists ? __ldcg(p.job.topk_ids + pass.first_pair + pair) : -1;
    if constexpr (kWeights) {
      held.weights[i] = exists ? load_weight(p.job, pass.first_pair + pair) : 0;
    }
  }
  return held;
}
/// Calls work(pair, id, weight) for all of the thread's pairs, of which it holds the first.
template <bool kWeights, class Work>
__device__ void for_pairs(const SortParams& p, const Pass& pass, HeldPairs held, const Work& work) {
  for (int32_t first = thread();;) {
#pragma unroll
    for (int i = 0; i < HeldPairs::kCount; ++i) {
      const int32_t pair = first + i * num_threads();
      if (pair < pass.num_pairs) work(pair, held.ids[i], kWeights ? held.weights[i] : 0);
    }
    first += HeldPairs::kCount * num_threads();
    if (first >= pass.num_pairs) return;
    held = hold_pairs<kWeights>(p, pass, first);
  }
}

/// Fills the cleared bitmaps: a bit per token for each of its experts, masked ones too. Ends
/// synchronised.
__device__ void fill_bitmaps(const SortParams& p, const SortShared& s, const Pass& pass,
                             const HeldPairs& held) {
  __syncthreads();  // the bitmaps are clear
  for_pairs<false>(p, pass, held, [&](int32_t pair, int32_t id, int32_t) {
    if (!is_expert(p.job, id) || pair >= pass.num_live) return;
    const int32_t token = token_of(p, pair);
    const uint32_t bit = 1u << (token % 32);
    const uint32_t before = atomicOr(&s.bitmaps[id * p.bitmap_words + token / 32], bit);
    if ((before & bit) != 0) *s.repeated = 1;
  });
  __syncthreads();
}

/// Pairs of the pass before `end` that name the expert, one by one: where some token names an
/// expert twice, which routing never does, bits do not count them all.
__device__ int32_t count_ids(const SortParams& p, const Pass& pass, int32_t id, int32_t end) {
  const int32_t* ids = p.job.topk_ids + pass.first_pair;
  int32_t count = 0;
#pragma unroll 8
  for (int32_t pair = 0; pair < end; ++pair) count += ids[pair] == id ? 1 : 0;
  return count;
}
/// Pairs of the pass with the expert.
__device__ int32_t count_in_pass(const SortParams& p, const SortShared& s, const Pass& pass,
                                 int32_t id) {
  return *s.repeated != 0 ? count_ids(p, pass, id, pass.num_live) : count_bits(p, s, id);
}
/// Those of them that come before `pair`, which is of `token`.
__device__ int32_t rank_in_pass(const SortParams& p, const SortShared& s, const Pass& pass,
                                int32_t id, int32_t token, int32_t pair) {
  return *s.repeated != 0 ? count_ids(p, pass, id, pair) : rank_of(p, s, id, token);
}

__global__ void __launch_bounds__(kThreads)
    sort_one_shot_kernel(const __grid_constant__ SortParams p) {
  let_next_kernel_start();
  const SortJob& job = p.job;
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (block >= p.num_sorters) {
    wait_for_previous_kernel();
    return zero_piece<kThreads>(job, block - p.num_sorters);
  }
  const SortShared s = carve_sort(p);
  clear_bitmaps(p, s);
  wait_for_previous_kernel();
  const auto most_tokens = static_cast<int32_t>(job.tokens.limit);
  Pass all{0, 0, most_tokens * job.top_k, 0};
  const HeldPairs held = hold_pairs<false>(p, all, thread());
  // This thread's own pair to place; loaded before it is needed.
  const int32_t at = block * num_threads() + thread();
  const int32_t id = at < all.num_pairs ? __ldcg(job.topk_ids + at) : -1;
  const int32_t weight = at < all.num_pairs ? load_weight(job, at) : 0;
  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
  all.num_live = live_pairs(p, most_tokens, num_tokens);
  load_mask(p, s);
  fill_bitmaps(p, s, all, held);
  const Placed placed = place_experts(p, s, *s.repeated != 0 ? p.repeated_block_bits : p.block_bits,
                                      [&](int e) { return count_in_pass(p, s, all, e); });
  if (at < all.num_pairs) {
    const int32_t token = token_of(p, at);
    const bool chosen = is_expert(job, id) && at < all.num_live && s.local_id[id] >= 0;
    const int32_t row =
        chosen ? s.first_block[id] * job.unit_size + rank_in_pass(p, s, all, id, token, at) : -1;
    if (chosen) write_row(job, row, pack_pair(token, at - token * job.top_k), weight);
    write_pair(job, at, row, chosen ? s.local_id[id] : -1);
  }
  finish_lists(p, s, placed, num_tokens, at, p.num_sorters * num_threads());
}

/// What the chunked path has besides: pairs of a pass in sorted order.
struct Staging {
  uint32_t* pair_and_expert;  // [kSortPairsPerPass] pair in the low, expert in the high half
  int32_t* weight;            // [kSortPairsPerPass]
  int32_t* offset;            // [E] of the expert's first staged pair; -1: masked out
  int32_t* before;            // [count_stride] the expert's rows of earlier chunks and passes
  int32_t* rows;              // [count_stride] and of the whole batch
};
__device__ Staging carve_staging(const SortParams& p, const SortShared& s) {
  Staging staging;
  staging.pair_and_expert = s.rest;
  staging.weight = reinterpret_cast<int32_t*>(s.rest + kSortPairsPerPass);
  staging.offset = staging.weight + kSortPairsPerPass;
  staging.before = staging.offset + p.job.num_experts;
  staging.rows = staging.before + p.count_stride;
  return staging;
}

/// offset[e] of every expert in the pass. Returns the pass's pairs; ends synchronised.
__device__ int32_t find_offsets(const SortParams& p, const SortShared& s, const Staging& staging,
                                const Pass& pass) {
  const int num_groups = ceil_div(p.job.num_experts, 32);
  const int num_warps = num_threads() / 32;
  const int bits = 32 - __clz(*s.repeated != 0 ? pass.num_pairs : p.tokens_per_pass);
  for (int group = thread() / 32; group < num_groups; group += num_warps) {
    const int e = group * 32 + lane();
    const bool local = takes_part(p, s, e);
    const LaneSums pairs = sum_lanes(local ? count_in_pass(p, s, pass, e) : 0, bits);
    if (e < p.job.num_experts) staging.offset[e] = local ? pairs.before : -1;
    if (lane() == 0) s.group_sums[group].x = static_cast<uint32_t>(pairs.all);
  }
  __syncthreads();
  uint32_t all = 0;
  for (int g = lane(); g < num_groups; g += 32) all += s.group_sums[g].x;
  for (int group = thread() / 32; group < num_groups; group += num_warps) {
    uint32_t before = 0;
    for (int g = lane(); g < group; g += 32) before += s.group_sums[g].x;
    before = __reduce_add_sync(~0u, before);
    const int e = group * 32 + lane();
    if (e < p.job.num_experts && staging.offset[e] >= 0) {
      staging.offset[e] += static_cast<int32_t>(before);
    }
  }
  __syncthreads();
  return static_cast<int32_t>(__reduce_add_sync(~0u, all));
}

/// Puts the pass's pairs in sorted order; pairs without a row are finished here. Returns how many
/// were staged; ends synchronised.
__device__ int32_t stage_pass(const SortParams& p, const SortShared& s, const Staging& staging,
                              const Pass& pass, const HeldPairs& held) {
  const int32_t num_staged = find_offsets(p, s, staging, pass);
  for_pairs<true>(p, pass, held, [&](int32_t pair, int32_t id, int32_t weight) {
    if (!is_expert(p.job, id) || pair >= pass.num_live || staging.offset[id] < 0) {
      return write_pair(p.job, pass.first_pair + pair, -1, -1);
    }
    const int32_t at = staging.offset[id] + rank_in_pass(p, s, pass, id, token_of(p, pair), pair);
    staging.pair_and_expert[at] = static_cast<uint32_t>(pair) | static_cast<uint32_t>(id) << 16;
    staging.weight[at] = weight;
  });
  __syncthreads();
  return num_staged;
}

/// Staged pairs to their rows: neighbours in the list are neighbours in memory.
__device__ void write_staged(const SortParams& p, const SortShared& s, const Staging& staging,
                             const Pass& pass, int32_t num_staged) {
  for (int32_t i = thread(); i < num_staged; i += num_threads()) {
    const uint32_t word = staging.pair_and_expert[i];
    const auto pair = static_cast<int32_t>(word & 0xffffu);
    const auto id = static_cast<int32_t>(word >> 16);
    const int32_t token = token_of(p, pair);
    const int32_t row =
        s.first_block[id] * p.job.unit_size + staging.before[id] + i - staging.offset[id];
    write_row(p.job, row, pack_pair(pass.first_token + token, pair - token * p.job.top_k),
              staging.weight[i]);
    write_pair(p.job, pass.first_pair + pair, row, s.local_id[id]);
  }
}

/// staging.before of the batch's first pass in this chunk, and staging.rows. Ends synchronised.
__device__ void add_up_chunks(const SortParams& p, const Staging& staging, int32_t chunk) {
  constexpr int kAtOnce = 16;  // one trip to the L2 for 128 chunks
  const int words = p.count_stride / 2;
  const int num_clusters = ceil_div(p.num_sorters, p.cluster);
  const int my_cluster = chunk / p.cluster;
  const auto* counts = reinterpret_cast<const uint32_t*>(p.counts);
  for (int w = thread(); w < words; w += num_threads()) {
    const uint32_t own = __ldcg(counts + (num_clusters + chunk) * words + w);
    uint2 all{0, 0};
    uint2 before{own & 0xffffu, own >> 16};
#pragma unroll 1
    for (int first = 0; first < num_clusters; first += kAtOnce) {
      uint32_t two[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        two[i] = first + i < num_clusters ? __ldcg(counts + (first + i) * words + w) : 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const bool earlier = first + i < my_cluster;
        all.x += two[i] & 0xffffu;
        all.y += two[i] >> 16;
        before.x += earlier ? two[i] & 0xffffu : 0u;
        before.y += earlier ? two[i] >> 16 : 0u;
      }
    }
    staging.before[2 * w] = static_cast<int32_t>(before.x);
    staging.before[2 * w + 1] = static_cast<int32_t>(before.y);
    staging.rows[2 * w] = static_cast<int32_t>(all.x);
    staging.rows[2 * w + 1] = static_cast<int32_t>(all.y);
  }
  __syncthreads();
}

/// A barrier of the cluster, or of the block where it is alone.
__device__ void synchronize_cluster(const SortParams& p) {
#if __CUDA_ARCH__ >= 900
  if (p.cluster > 1) {
    sm90::cluster_arrive();
    return sm90::cluster_wait();
  }
#endif
  __syncthreads();
}
/// Sum of *count in the shared memory of the cluster's first `num_blocks` blocks. All loads are in
/// flight at once.
__device__ int32_t add_up_cluster(const int32_t* count, int num_blocks) {
  int32_t sum = 0;
#if __CUDA_ARCH__ >= 900
  uint32_t counts[kSortClusterChunks];
#pragma unroll
  for (int rank = 0; rank < kSortClusterChunks; ++rank) {
    counts[rank] = rank < num_blocks ? sm90::cluster_load(sm90::shared_address_in(count, rank)) : 0;
  }
#pragma unroll
  for (const uint32_t one : counts) sum += static_cast<int32_t>(one);
#endif
  return sum;
}

__device__ int32_t chunk_end(const SortParams& p, int32_t begin) {
  return min(begin + p.tokens_per_chunk, static_cast<int32_t>(p.job.tokens.limit));
}

/// Publishes how many pairs each expert has in every cluster of chunks, and in the chunks of its
/// cluster before each chunk: few rows to add up, or every placing block would read all chunks'.
__global__ void __launch_bounds__(kThreads)
    sort_count_kernel(const __grid_constant__ SortParams p) {
  const SortShared s = carve_sort(p);
  const auto chunk = static_cast<int32_t>(blockIdx.x);
  clear_bitmaps(p, s);
  wait_for_previous_kernel();
  let_next_kernel_start();  // it reads the ids too: not before they are there
  const int32_t begin = chunk * p.tokens_per_chunk;
  const int32_t end = chunk_end(p, begin);
  load_mask(p, s);
  const auto num_tokens = static_cast<int32_t>(p.job.tokens.value());
  int32_t* counts = s.total;
  for (int e = thread(); e < p.job.num_experts; e += num_threads()) counts[e] = 0;
  for (int32_t token = begin; token < end; token += p.tokens_per_pass) {
    if (token != begin) clear_bitmaps(p, s);
    const Pass pass = pass_at(p, token, end, num_tokens);
    fill_bitmaps(p, s, pass, hold_pairs<false>(p, pass, thread()));
    for (int e = thread(); e < p.job.num_experts; e += num_threads()) {
      if (takes_part(p, s, e)) counts[e] += count_in_pass(p, s, pass, e);
    }
    __syncthreads();
  }
  synchronize_cluster(p);
  const int rank = chunk % p.cluster;
  const int num_clusters = ceil_div(p.num_sorters, p.cluster);
  uint16_t* of_cluster = p.counts + static_cast<int64_t>(chunk / p.cluster) * p.count_stride;
  uint16_t* of_chunk = p.counts + static_cast<int64_t>(num_clusters + chunk) * p.count_stride;
  for (int e = thread(); e < p.count_stride; e += num_threads()) {
    const bool exists = e < p.job.num_experts;
    const int32_t before = exists ? add_up_cluster(counts + e, rank) : 0;
    if (chunk < p.num_sorters) of_chunk[e] = static_cast<uint16_t>(before);
    if (rank == p.cluster - 1) {
      of_cluster[e] = static_cast<uint16_t>(before + (exists ? counts[e] : 0));
    }
  }
  if (p.cluster > 1) synchronize_cluster(p);  // the others may still read this block's counts
}

/// Ranks and stages its chunk while the counting kernel still runs, then learns where rows begin.
/// It starts when the ids are there, so only the counts have to be waited for.
__global__ void __launch_bounds__(kThreads)
    sort_place_kernel(const __grid_constant__ SortParams p) {
  let_next_kernel_start();
  const SortJob& job = p.job;
  const auto chunk = static_cast<int32_t>(blockIdx.x);
  if (chunk >= p.num_sorters) return zero_piece<kThreads>(job, chunk - p.num_sorters);
  const SortShared s = carve_sort(p);
  const Staging staging = carve_staging(p, s);
  const int32_t begin = chunk * p.tokens_per_chunk;
  const int32_t end = chunk_end(p, begin);
  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
  Placed placed{};
  load_mask(p, s);
  for (int32_t token = begin; token < end; token += p.tokens_per_pass) {
    const Pass pass = pass_at(p, token, end, num_tokens);
    const HeldPairs held = hold_pairs<true>(p, pass, thread());
    clear_bitmaps(p, s);
    fill_bitmaps(p, s, pass, held);
    const int32_t num_staged = stage_pass(p, s, staging, pass, held);
    if (token == begin) {
      wait_for_previous_kernel();
      add_up_chunks(p, staging, chunk);
      placed = place_experts(p, s, p.repeated_block_bits, [&](int e) { return staging.rows[e]; });
    }
    write_staged(p, s, staging, pass, num_staged);
    if (end - token <= p.tokens_per_pass) break;
    __syncthreads();
    for (int e = thread(); e < job.num_experts; e += num_threads()) {
      staging.before[e] += count_in_pass(p, s, pass, e);
    }
    __syncthreads();
  }
  // Neighbouring experts to different SMs.
  const int32_t warp = thread() / 32 * p.num_sorters + chunk;
  finish_lists(p, s, placed, num_tokens, warp * 32 + lane(), p.num_sorters * num_threads());
}

/// Nothing to sort: everything is padding.
__global__ void sort_nothing_kernel(const __grid_constant__ SortParams p) {
  wait_for_previous_kernel();
  const SortShared nothing{};
  const auto block = static_cast<int32_t>(blockIdx.x);
  const auto num_blocks = static_cast<int32_t>(gridDim.x);
  finish_lists(p, nothing, {0, 0}, 0, block * num_threads() + thread(), num_blocks * num_threads());
  zero_piece<kThreads>(p.job, block);
}

}  // namespace

SortParams sort_params(const SortJob& job, const SortPlan& plan, void* scratch) {
  const auto block_bits = [&](int64_t rows) {
    return static_cast<int32_t>(
        std::bit_width(static_cast<uint32_t>(ceil_div<int64_t>(rows, job.unit_size))));
  };
  const auto inverse = [](int32_t divisor) {  // 2^32 becomes 0
    return static_cast<uint32_t>(
        ceil_div<uint64_t>(uint64_t{1} << 32, static_cast<uint64_t>(divisor)));
  };
  const bool shifts = std::has_single_bit(static_cast<uint32_t>(job.unit_size));
  return {.job = job,
          .counts = static_cast<uint16_t*>(scratch),
          .num_sorters = static_cast<int32_t>(plan.num_blocks),
          .tokens_per_chunk = static_cast<int32_t>(plan.tokens_per_chunk),
          .tokens_per_pass = static_cast<int32_t>(plan.tokens_per_pass),
          .bitmap_words = static_cast<int32_t>(plan.bitmap_words),
          .count_stride = static_cast<int32_t>(sort_count_stride(job.num_experts)),
          .cluster = 1,
          .block_bits = block_bits(job.tokens.limit),
          .repeated_block_bits = block_bits(job.tokens.limit * job.top_k),
          .unit_shift = shifts ? std::countr_zero(static_cast<uint32_t>(job.unit_size)) : -1,
          .top_k_inverse = inverse(job.top_k),
          .unit_inverse = inverse(job.unit_size)};
}

void sort(const SortJob& job, const SortPlan& plan, void* scratch, int device, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  SortParams p = sort_params(job, plan, scratch);
  const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
  LaunchShape shape{.grid = blocks(plan.num_blocks + num_pieces(job)),
                    .block = static_cast<unsigned>(plan.threads),
                    .shared_bytes = plan.shared_bytes,
                    .overlap_previous = device_facts(device).capability >= 90};
  if (job.tokens.limit == 0) {
    shape.grid = blocks(1 + num_pieces(job));
    shape.shared_bytes = 0;
    return launch(sort_nothing_kernel, shape, cuda_stream, p);
  }
  if (plan.path == SortPath::kFewTokens) return sort_few(p, shape, cuda_stream);
  if (plan.path == SortPath::kOneShot) return launch(sort_one_shot_kernel, shape, cuda_stream, p);
  if (shape.overlap_previous) p.cluster = kSortClusterChunks;
  LaunchShape counting = shape;
  counting.cluster = static_cast<unsigned>(p.cluster);
  counting.grid = blocks(align_up<int64_t>(plan.num_blocks, p.cluster));
  counting.shared_bytes = sort_common_words(job.num_experts, plan.bitmap_words) * 4;
  launch(sort_count_kernel, counting, cuda_stream, p);
  launch(sort_place_kernel, shape, cuda_stream, p);
}

}  // namespace switchyard::cuda
