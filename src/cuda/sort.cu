// The sort contract of ops.h; core/sort_plan.h describes the two paths. Blocks beside the sorting
// ones zero the output buffer meanwhile.

#include <bit>

#include "core/expert_sort.h"
#include "cuda/launch.cuh"
#include "cuda/sort.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = static_cast<int>(kSortThreads);
constexpr int kMaxExpertsPerThread = 8;       // kMaxExperts / 512 threads
constexpr int32_t kOneBits = 0x3f800000;      // 1.0f
constexpr int64_t kPieceVectors = 16 * 1024;  // 256 KB
constexpr uint32_t kAll = ~0u;

struct SortParams {
  SortJob job;
  uint16_t* counts;  // [num_chunks][count_stride]
  int32_t num_sorters, tokens_per_chunk, tokens_per_pass, bitmap_words, count_stride, num_partials;
  int32_t experts_per_thread;
  int32_t unit_shift;      // unit_size is 1 << unit_shift, or -1
  uint32_t top_k_inverse;  // ceil(2^32 / top_k): exact quotients below 2^32 / 127
};

/// The arrays that core/sort_plan.h sizes.
struct Shared {
  uint64_t* warp_sums;   // [32]
  int32_t* repeated;     // [1] some token names an expert twice
  uint32_t* bitmaps;     // [E][bitmap_words]
  int32_t* cursor;       // [E] row of the expert's first pair of this pass
  int32_t* total;        // [E] rows of the whole batch
  int32_t* local_id;     // [E] -1: masked out
  int32_t* first_block;  // [E + 1]
  uint32_t* rest;        // what only one path has
};

extern __shared__ uint64_t shared_memory[];

__device__ Shared carve(const SortParams& p) {
  const int experts = p.job.num_experts;
  auto* words = reinterpret_cast<uint32_t*>(shared_memory);
  Shared s;
  s.warp_sums = shared_memory;
  s.repeated = reinterpret_cast<int32_t*>(words + 64);
  s.bitmaps = words + 66;
  s.cursor = reinterpret_cast<int32_t*>(s.bitmaps + experts * p.bitmap_words);
  s.total = s.cursor + experts;
  s.local_id = s.total + experts;
  s.first_block = s.local_id + experts;
  s.rest = words + sort_common_words(experts, p.bitmap_words);
  return s;
}

__device__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ int num_threads() { return static_cast<int>(blockDim.x); }

/// Token of a pair counted from the pass's first, and back to its slot.
__device__ int32_t token_of(const SortParams& p, int32_t pair) {
  return p.job.top_k == 1 ? pair : static_cast<int32_t>(__umulhi(pair, p.top_k_inverse));
}

/// Experts [first, last) belong to this thread where experts are walked in order.
struct ExpertRange {
  int first, last;
  uint32_t mask;  // bit j: expert first + j takes part
};
__device__ ExpertRange my_experts(const SortParams& p) {
  const int each = p.experts_per_thread;
  ExpertRange mine{thread() * each, min((thread() + 1) * each, p.job.num_experts), kAll};
  if (p.job.expert_mask == nullptr) return mine;
  mine.mask = 0;
  for (int j = 0; mine.first + j < mine.last; ++j) {
    if (p.job.expert_mask[mine.first + j] != 0) mine.mask |= 1u << j;
  }
  return mine;
}
__device__ int32_t blocks_of(const SortParams& p, int32_t rows) {
  const int32_t unit = p.job.unit_size;
  return p.unit_shift >= 0 ? (rows + unit - 1) >> p.unit_shift : ceil_div(rows, unit);
}
__device__ bool takes_part(const ExpertRange& mine, int e) {
  return (mine.mask >> (e - mine.first) & 1u) != 0;
}

/// Consecutive pairs that are ranked together.
struct Pass {
  int32_t first_token, first_pair, num_pairs;
};
__device__ Pass pass_at(const SortParams& p, int32_t first_token, int32_t end_token) {
  const int32_t tokens = min(p.tokens_per_pass, end_token - first_token);
  return {first_token, first_token * p.job.top_k, tokens * p.job.top_k};
}

__device__ bool is_expert(const SortJob& job, int32_t id) {
  return static_cast<uint32_t>(id) < static_cast<uint32_t>(job.num_experts);
}

/// Fills the bitmaps: a bit per token for each of its experts, masked ones too. `num_tokens` counts
/// from the start of the batch. Ends with the block synchronised.
__device__ void fill_bitmaps(const SortParams& p, const Shared& s, const Pass& pass,
                             int32_t num_tokens) {
  constexpr int kAtOnce = 4;
  for (int i = thread(); i < p.job.num_experts * p.bitmap_words; i += num_threads()) {
    s.bitmaps[i] = 0;
  }
  if (thread() == 0) *s.repeated = 0;
  for (int first = thread(); first - thread() < pass.num_pairs; first += kAtOnce * num_threads()) {
    int32_t ids[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = first + i * num_threads();
      ids[i] = pair < pass.num_pairs ? p.job.topk_ids[pass.first_pair + pair] : -1;
    }
    if (first == thread()) __syncthreads();  // the bitmaps are clear; the loads are under way
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int pair = first + i * num_threads();
      const int32_t token = token_of(p, pair);
      if (!is_expert(p.job, ids[i]) || pass.first_token + token >= num_tokens) continue;
      const uint32_t bit = 1u << (token % 32);
      const uint32_t before = atomicOr(&s.bitmaps[ids[i] * p.bitmap_words + token / 32], bit);
      if ((before & bit) != 0) *s.repeated = 1;
    }
  }
  __syncthreads();
}

__device__ int32_t count_bits(const SortParams& p, const Shared& s, int e) {
  int32_t count = 0;
  const uint32_t* words = s.bitmaps + e * p.bitmap_words;
  for (int w = 0; w < p.bitmap_words; ++w) count += __popc(words[w]);
  return count;
}
/// Pairs of this pass with the same expert and an earlier token.
__device__ int32_t rank_of(const SortParams& p, const Shared& s, int32_t id, int32_t token) {
  const uint32_t* words = s.bitmaps + id * p.bitmap_words;
  int32_t rank = __popc(words[token / 32] & ((1u << (token % 32)) - 1u));
  for (int w = 0; w < token / 32; ++w) rank += __popc(words[w]);
  return rank;
}

/// Whether an earlier slot of the token names the same expert. A row must not; when one does, the
/// first slot keeps its row and the others are skipped, as the bitmaps count them.
__device__ bool repeats(const SortJob& job, int32_t token, int32_t pair, int32_t id) {
  for (int32_t other = token * job.top_k; other < pair; ++other) {
    if (job.topk_ids[other] == id) return true;
  }
  return false;
}

/// Sum over the threads before this one, and over all: warps first, then every thread adds up the
/// warps before its own. The value's halves are summed apart and must not overflow.
struct Scan {
  uint64_t before, all;
};
__device__ Scan exclusive_scan(uint64_t value, uint64_t* warp_sums) {
  const int lane = thread() % 32;
  const int warp = thread() / 32;
  uint64_t sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t below = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  const uint64_t other = lane * 32 < num_threads() ? warp_sums[lane] : 0;
  const auto low = static_cast<uint32_t>(other);
  const auto high = static_cast<uint32_t>(other >> 32);
  const uint64_t before = static_cast<uint64_t>(__reduce_add_sync(kAll, lane < warp ? high : 0u))
                              << 32 |
                          __reduce_add_sync(kAll, lane < warp ? low : 0u);
  const uint64_t all =
      static_cast<uint64_t>(__reduce_add_sync(kAll, high)) << 32 | __reduce_add_sync(kAll, low);
  return {before + sum - value, all};
}

/// From total[e] (0 where masked) to first_block, local_id and, in cursor, the expert's first row.
/// Returns the number of blocks; ends unsynchronised. `each` sees (expert, first block, blocks).
template <class Each>
__device__ int32_t place_experts(const SortParams& p, const Shared& s, const ExpertRange& mine,
                                 Each each) {
  uint64_t sum = 0;  // local experts in the upper half, blocks in the lower
  for (int e = mine.first; e < mine.last; ++e) {
    sum += static_cast<uint64_t>(takes_part(mine, e)) << 32 |
           static_cast<uint32_t>(blocks_of(p, s.total[e]));
  }
  const Scan scan = exclusive_scan(sum, s.warp_sums);
  auto block = static_cast<int32_t>(scan.before);
  auto local = static_cast<int32_t>(scan.before >> 32);
  const auto num_blocks = static_cast<int32_t>(scan.all);
  for (int e = mine.first; e < mine.last; ++e) {
    s.first_block[e] = block;
    s.cursor[e] = block * p.job.unit_size;
    s.local_id[e] = takes_part(mine, e) ? local++ : -1;
    const int32_t blocks = blocks_of(p, s.total[e]);
    each(e, block, blocks);
    block += blocks;
  }
  if (thread() == 0) s.first_block[p.job.num_experts] = num_blocks;
  return num_blocks;
}

__device__ void write_row(const SortJob& job, int32_t row, int32_t packed, int32_t weight) {
  job.sorted_ids[row] = packed;
  if (job.sorted_weights != nullptr) job.sorted_weights[row] = weight;
  if (job.m_indices != nullptr) job.m_indices[row] = packed_token(packed);
}
__device__ int32_t load_weight(const SortJob& job, int32_t pair) {
  return job.topk_weights == nullptr ? kOneBits : job.topk_weights[pair];
}
/// What the optional maps say about a pair; row -1: skipped.
__device__ void write_pair(const SortJob& job, int32_t pair, int32_t row, int32_t local_id) {
  if (job.local_topk_ids != nullptr) job.local_topk_ids[pair] = local_id;
  if (job.reverse_sorted != nullptr) job.reverse_sorted[pair] = row;
}

/// Padding rows of block b of expert e, by a warp.
__device__ void pad_block(const SortParams& p, const Shared& s, int e, int32_t b) {
  const int32_t padding = pack_pair(p.job.tokens.limit, p.job.top_k);
  const int32_t used = s.total[e] - (b - s.first_block[e]) * p.job.unit_size;
  for (int32_t i = used + thread() % 32; i < p.job.unit_size; i += 32) {
    write_row(p.job, b * p.job.unit_size + i, padding, 0);
  }
}

/// Rows and blocks behind the last used one, by sorter thread `at` of `step`.
__device__ void fill_tail(const SortJob& job, int32_t num_blocks, int32_t at, int32_t step) {
  const int32_t padding = pack_pair(job.tokens.limit, job.top_k);
  for (int32_t r = num_blocks * job.unit_size + at; r < job.capacity; r += step) {
    write_row(job, r, padding, 0);
  }
  for (int32_t b = num_blocks + at; b < job.num_blocks; b += step) job.sorted_expert_ids[b] = -1;
}

__device__ void write_num_valid(const SortJob& job, int32_t num_blocks, int32_t num_tokens) {
  job.num_valid_ids[0] = num_blocks * job.unit_size;
  if (job.num_valid > 1) job.num_valid_ids[1] = num_tokens;
}

/// Piece `piece` of the buffer to zero. Small pieces: SMs take one whenever they have room.
__device__ void zero_piece(const SortJob& job, int32_t piece) {
  auto* vectors = static_cast<uint4*>(job.zeroed);
  const int64_t count = job.zeroed_bytes / 16;
  const int64_t first = piece * kPieceVectors + thread();
  for (int64_t i = first; i < min(piece * kPieceVectors + kPieceVectors, count);
       i += num_threads()) {
    vectors[i] = uint4{0, 0, 0, 0};
  }
}

__global__ void __launch_bounds__(kThreads) sort_one_shot_kernel(const SortParams p) {
  const SortJob& job = p.job;
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (block >= p.num_sorters) return zero_piece(job, block - p.num_sorters);
  const Shared s = carve(p);
  auto* block_expert = reinterpret_cast<uint16_t*>(s.rest);
  const Pass all{0, 0, static_cast<int32_t>(job.tokens.limit) * job.top_k};
  // This thread's own pair to place; loaded before it is needed.
  const int32_t at = block * num_threads() + thread();
  const int32_t id = at < all.num_pairs ? job.topk_ids[at] : -1;
  const int32_t weight = at < all.num_pairs ? load_weight(job, at) : 0;
  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
  const ExpertRange mine = my_experts(p);
  fill_bitmaps(p, s, all, num_tokens);
  for (int e = mine.first; e < mine.last; ++e) {
    s.total[e] = takes_part(mine, e) ? count_bits(p, s, e) : 0;
  }
  const int32_t num_blocks = place_experts(p, s, mine, [&](int e, int32_t first, int32_t count) {
    for (int32_t b = first; b < first + count; ++b) block_expert[b] = static_cast<uint16_t>(e);
  });
  __syncthreads();
  if (at < all.num_pairs) {
    const int32_t token = token_of(p, at);
    bool chosen = is_expert(job, id) && token < num_tokens && s.local_id[id] >= 0;
    if (chosen && *s.repeated != 0) chosen = !repeats(job, token, at, id);
    const int32_t row = chosen ? s.cursor[id] + rank_of(p, s, id, token) : -1;
    if (chosen) write_row(job, row, pack_pair(token, at - token * job.top_k), weight);
    write_pair(job, at, row, chosen ? s.local_id[id] : -1);
  }
  const int32_t step = p.num_sorters * num_threads();
  for (int32_t b = at / 32; b < num_blocks; b += step / 32) {
    const int e = block_expert[b];
    if (thread() % 32 == 0) job.sorted_expert_ids[b] = s.local_id[e];
    pad_block(p, s, e, b);
  }
  fill_tail(job, num_blocks, at, step);
  if (at == 0) write_num_valid(job, num_blocks, num_tokens);
}

/// What the chunked path has besides: pairs of a pass in sorted order.
struct Staging {
  uint32_t* pair_and_expert;  // [kSortPairsPerPass] pair in the low, expert in the high half
  int32_t* weight;            // [kSortPairsPerPass]
  int32_t* offset;            // [E] of the expert's first staged pair
  int32_t* partials;          // [2][num_partials][count_stride]
};
__device__ Staging carve_staging(const SortParams& p, const Shared& s) {
  Staging staging;
  staging.pair_and_expert = s.rest;
  staging.weight = reinterpret_cast<int32_t*>(s.rest + kSortPairsPerPass);
  staging.offset = staging.weight + kSortPairsPerPass;
  staging.partials = staging.offset + p.job.num_experts;
  return staging;
}

/// Puts the pass's pairs in sorted order; pairs without a row are finished here. Returns how many
/// were staged; `counts` holds the bits of this thread's experts, 0 where masked. Ends
/// synchronised.
__device__ int32_t stage_pass(const SortParams& p, const Shared& s, const Staging& staging,
                              const ExpertRange& mine, const Pass& pass, int32_t num_tokens,
                              const int32_t (&counts)[kMaxExpertsPerThread]) {
  uint64_t sum = 0;
#pragma unroll
  for (int j = 0; j < kMaxExpertsPerThread; ++j) {
    if (j >= p.experts_per_thread) break;
    sum += static_cast<uint32_t>(counts[j]);
  }
  const Scan scan = exclusive_scan(sum, s.warp_sums);
  auto offset = static_cast<int32_t>(scan.before);
#pragma unroll
  for (int j = 0; j < kMaxExpertsPerThread; ++j) {
    if (mine.first + j >= mine.last) break;
    staging.offset[mine.first + j] = takes_part(mine, mine.first + j) ? offset : -1;
    offset += counts[j];
  }
  __syncthreads();
  for (int pair = thread(); pair < pass.num_pairs; pair += num_threads()) {
    const int32_t id = p.job.topk_ids[pass.first_pair + pair];
    const int32_t weight = load_weight(p.job, pass.first_pair + pair);
    const int32_t token = token_of(p, pair);
    bool chosen =
        is_expert(p.job, id) && pass.first_token + token < num_tokens && staging.offset[id] >= 0;
    if (chosen && *s.repeated != 0) {
      chosen = !repeats(p.job, pass.first_token + token, pass.first_pair + pair, id);
    }
    if (!chosen) {
      write_pair(p.job, pass.first_pair + pair, -1, -1);
      continue;
    }
    const int32_t at = staging.offset[id] + rank_of(p, s, id, token);
    staging.pair_and_expert[at] = static_cast<uint32_t>(pair) | static_cast<uint32_t>(id) << 16;
    staging.weight[at] = weight;
  }
  __syncthreads();
  return static_cast<int32_t>(scan.all);
}

/// Staged pairs to their rows: neighbours in the list are neighbours in memory.
__device__ void write_staged(const SortParams& p, const Shared& s, const Staging& staging,
                             const Pass& pass, int32_t num_staged) {
  for (int32_t i = thread(); i < num_staged; i += num_threads()) {
    const uint32_t word = staging.pair_and_expert[i];
    const auto pair = static_cast<int32_t>(word & 0xffffu);
    const auto id = static_cast<int32_t>(word >> 16);
    const int32_t token = token_of(p, pair);
    const int32_t row = s.cursor[id] + i - staging.offset[id];
    write_row(p.job, row, pack_pair(pass.first_token + token, pair - token * p.job.top_k),
              staging.weight[i]);
    write_pair(p.job, pass.first_pair + pair, row, s.local_id[id]);
  }
}

__device__ void count_pass(const SortParams& p, const Shared& s, const ExpertRange& mine,
                           int32_t (&counts)[kMaxExpertsPerThread]) {
#pragma unroll
  for (int j = 0; j < kMaxExpertsPerThread; ++j) {
    if (j >= p.experts_per_thread) break;
    const int e = mine.first + j;
    counts[j] = e < mine.last && takes_part(mine, e) ? count_bits(p, s, e) : 0;
  }
}

/// total[e] over all chunks; partials[e] over the chunks before `chunk`. Ends synchronised.
__device__ void add_up_chunks(const SortParams& p, const Shared& s, int32_t* partials,
                              int32_t chunk) {
  constexpr int kAtOnce = 16;
  const int words = p.count_stride / 2;
  const int part = thread() / words;
  const int32_t plane = p.num_partials * p.count_stride;
  const int column_step = p.num_partials == 1 ? num_threads() : words;
  for (int w = thread() - part * words; part < p.num_partials && w < words; w += column_step) {
    const auto* counts = reinterpret_cast<const uint32_t*>(p.counts) + w;
    uint2 all{0, 0};
    uint2 before{0, 0};
#pragma unroll 1
    for (int first = part; first < p.num_sorters; first += kAtOnce * p.num_partials) {
      uint32_t two[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int c = first + i * p.num_partials;
        two[i] = c < p.num_sorters ? __ldcg(counts + c * words) : 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const bool earlier = first + i * p.num_partials < chunk;
        all.x += two[i] & 0xffffu;
        all.y += two[i] >> 16;
        before.x += earlier ? two[i] & 0xffffu : 0u;
        before.y += earlier ? two[i] >> 16 : 0u;
      }
    }
    const int at = part * p.count_stride + 2 * w;
    partials[at] = static_cast<int32_t>(all.x);
    partials[at + 1] = static_cast<int32_t>(all.y);
    partials[plane + at] = static_cast<int32_t>(before.x);
    partials[plane + at + 1] = static_cast<int32_t>(before.y);
  }
  __syncthreads();
  for (int e = thread(); e < p.job.num_experts; e += num_threads()) {
    int32_t total = 0;
    int32_t before = 0;
    for (int i = 0; i < p.num_partials; ++i) {
      total += partials[i * p.count_stride + e];
      before += partials[plane + i * p.count_stride + e];
    }
    s.total[e] = total;
    partials[e] = before;  // only this thread reads or writes column e from here on
  }
  __syncthreads();
}

/// Block ids and padding rows of the experts that this chunk's warps own.
__device__ void finish_experts(const SortParams& p, const Shared& s, int32_t first_warp,
                               int32_t step) {
  for (int e = first_warp; e < p.job.num_experts; e += step) {
    const int32_t last = s.first_block[e + 1];
    for (int32_t b = s.first_block[e] + thread() % 32; b < last; b += 32) {
      p.job.sorted_expert_ids[b] = s.local_id[e];
    }
    if (s.total[e] > 0) pad_block(p, s, e, last - 1);
  }
}

__device__ int32_t chunk_end(const SortParams& p, int32_t begin) {
  return min(begin + p.tokens_per_chunk, static_cast<int32_t>(p.job.tokens.limit));
}

/// Publishes how many pairs of a chunk each expert has.
__global__ void __launch_bounds__(kThreads) sort_count_kernel(const SortParams p) {
  let_next_kernel_start();
  const Shared s = carve(p);
  const auto chunk = static_cast<int32_t>(blockIdx.x);
  const int32_t begin = chunk * p.tokens_per_chunk;
  const int32_t end = chunk_end(p, begin);
  const auto num_tokens = static_cast<int32_t>(p.job.tokens.value());
  const ExpertRange mine = my_experts(p);
  int32_t chunk_counts[kMaxExpertsPerThread] = {};
  for (int32_t token = begin; token < end; token += p.tokens_per_pass) {
    int32_t counts[kMaxExpertsPerThread];
    if (token != begin) __syncthreads();
    fill_bitmaps(p, s, pass_at(p, token, end), num_tokens);
    count_pass(p, s, mine, counts);
#pragma unroll
    for (int j = 0; j < kMaxExpertsPerThread; ++j) {
      if (j >= p.experts_per_thread) break;
      chunk_counts[j] += counts[j];
    }
  }
  uint16_t* row = p.counts + static_cast<int64_t>(chunk) * p.count_stride;
#pragma unroll
  for (int j = 0; j < kMaxExpertsPerThread; ++j) {
    if (mine.first + j >= mine.last) break;
    row[mine.first + j] = static_cast<uint16_t>(chunk_counts[j]);
  }
  if (thread() == 0 && p.job.num_experts < p.count_stride) row[p.job.num_experts] = 0;
}

/// Ranks and stages its chunk while the counting kernel still runs, then learns where rows begin.
__global__ void __launch_bounds__(kThreads) sort_place_kernel(const SortParams p) {
  const SortJob& job = p.job;
  const auto chunk = static_cast<int32_t>(blockIdx.x);
  if (chunk >= p.num_sorters) return zero_piece(job, chunk - p.num_sorters);
  const Shared s = carve(p);
  const Staging staging = carve_staging(p, s);
  const int32_t begin = chunk * p.tokens_per_chunk;
  const int32_t end = chunk_end(p, begin);
  const auto num_tokens = static_cast<int32_t>(job.tokens.value());
  const ExpertRange mine = my_experts(p);
  int32_t num_blocks = 0;
  for (int32_t token = begin; token < end; token += p.tokens_per_pass) {
    const Pass pass = pass_at(p, token, end);
    int32_t counts[kMaxExpertsPerThread];
    fill_bitmaps(p, s, pass, num_tokens);
    count_pass(p, s, mine, counts);
    const int32_t num_staged = stage_pass(p, s, staging, mine, pass, num_tokens, counts);
    if (token == begin) {
      wait_for_previous_kernel();
      add_up_chunks(p, s, staging.partials, chunk);
      num_blocks = place_experts(p, s, mine, [](int, int32_t, int32_t) {});
      __syncthreads();
      for (int e = thread(); e < job.num_experts; e += num_threads()) {
        s.cursor[e] += staging.partials[e];
      }
      __syncthreads();
    }
    write_staged(p, s, staging, pass, num_staged);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMaxExpertsPerThread; ++j) {
      if (mine.first + j >= mine.last) break;
      s.cursor[mine.first + j] += counts[j];
    }
  }
  const int32_t at = chunk * num_threads() + thread();
  finish_experts(p, s, at / 32, p.num_sorters * num_threads() / 32);
  fill_tail(job, num_blocks, at, p.num_sorters * num_threads());
  if (at == 0) write_num_valid(job, num_blocks, num_tokens);
}

/// Nothing to sort: everything is padding.
__global__ void sort_nothing_kernel(const SortParams p) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  const auto num_blocks = static_cast<int32_t>(gridDim.x);
  fill_tail(p.job, 0, block * num_threads() + thread(), num_blocks * num_threads());
  zero_piece(p.job, block);
  if (block == 0 && thread() == 0) write_num_valid(p.job, 0, 0);
}

int64_t num_pieces(const SortJob& job) {
  return ceil_div<int64_t>(job.zeroed_bytes / 16, kPieceVectors);
}

SortParams make_params(const SortJob& job, const SortPlan& plan, void* scratch) {
  return {
      .job = job,
      .counts = static_cast<uint16_t*>(scratch),
      .num_sorters = static_cast<int32_t>(plan.num_blocks),
      .tokens_per_chunk = static_cast<int32_t>(plan.tokens_per_chunk),
      .tokens_per_pass = static_cast<int32_t>(plan.tokens_per_pass),
      .bitmap_words = static_cast<int32_t>(plan.bitmap_words),
      .count_stride = static_cast<int32_t>(sort_count_stride(job.num_experts)),
      .num_partials = static_cast<int32_t>(sort_num_partials(job.num_experts)),
      .experts_per_thread = static_cast<int32_t>(ceil_div<int64_t>(job.num_experts, plan.threads)),
      .unit_shift = std::has_single_bit(static_cast<uint32_t>(job.unit_size))
                        ? std::countr_zero(static_cast<uint32_t>(job.unit_size))
                        : -1,
      .top_k_inverse = static_cast<uint32_t>(
          ceil_div<uint64_t>(uint64_t{1} << 32, static_cast<uint64_t>(job.top_k)))};
}

}  // namespace

void sort(const SortJob& job, const SortPlan& plan, void* scratch, int device, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream.handle);
  const SortParams p = make_params(job, plan, scratch);
  const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
  LaunchShape shape{.grid = blocks(plan.num_blocks + num_pieces(job)),
                    .block = static_cast<unsigned>(plan.threads),
                    .shared_bytes = plan.shared_bytes};
  if (job.tokens.limit == 0) {
    launch(sort_nothing_kernel, {.grid = blocks(1 + num_pieces(job)), .block = kThreads},
           cuda_stream, p);
    return;
  }
  if (plan.path == SortPath::kOneShot) return launch(sort_one_shot_kernel, shape, cuda_stream, p);
  LaunchShape counting = shape;
  counting.grid = blocks(plan.num_blocks);
  counting.shared_bytes = sort_common_words(job.num_experts, plan.bitmap_words) * 4;
  launch(sort_count_kernel, counting, cuda_stream, p);
  shape.overlap_previous = device_facts(device).capability >= 90;
  launch(sort_place_kernel, shape, cuda_stream, p);
}

}  // namespace switchyard::cuda
