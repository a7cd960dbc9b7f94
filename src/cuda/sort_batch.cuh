#pragma once
// What every sorting kernel does with a batch whose rows per expert are known: the place of every
// expert in the list, padding, and the outputs per expert. Arrays as core/sort_plan.h sizes them.

#include "core/expert_sort.h"
#include "core/sort_plan.h"
#include "cuda/launch.cuh"
#include "cuda/sort.h"

namespace switchyard::cuda {

struct SortParams {
  SortJob job;
  uint16_t* counts;  // [num_clusters][count_stride], then [num_chunks][count_stride]
  int32_t num_sorters, tokens_per_chunk, tokens_per_pass, bitmap_words, count_stride;
  int32_t cluster;     // chunks whose counts are added up before they are published
  int32_t block_bits;  // of the most blocks that one expert can have when no token repeats it
  int32_t repeated_block_bits;  // and when one may
  int32_t unit_shift;           // unit_size is 1 << unit_shift, or -1
  uint32_t top_k_inverse;       // ceil(2^32 / top_k): exact quotients below 2^32 / 127
  uint32_t unit_inverse;        // likewise of the unit; both 0 for a divisor of 1
};
SortParams sort_params(const SortJob& job, const SortPlan& plan, void* scratch);

struct SortShared {
  uint2* group_sums;  // [kMaxExperts / 32] blocks; active experts and, in the high half, local ones
  int32_t* repeated;  // [1] some token names an expert twice
  uint32_t* bitmaps;  // [E][bitmap_words]
  int32_t* total;     // [E] rows of the whole batch
  int32_t* first_block;  // [E]
  int32_t* local_id;     // [E] -1: masked out; before place_experts only its sign is there
  int32_t* active;       // [E] the experts that have rows, ascending
  uint32_t* rest;        // what only one kernel has
};

extern __shared__ uint64_t sort_shared_memory[];

__device__ inline SortShared carve_sort(const SortParams& p) {
  const int experts = p.job.num_experts;
  auto* words = reinterpret_cast<uint32_t*>(sort_shared_memory);
  SortShared s;
  s.group_sums = reinterpret_cast<uint2*>(sort_shared_memory);
  s.repeated = reinterpret_cast<int32_t*>(words + kSortScanWords);
  s.bitmaps = words + kSortScanWords + 2;
  s.total = reinterpret_cast<int32_t*>(s.bitmaps + experts * p.bitmap_words);
  s.first_block = s.total + experts;
  s.local_id = s.first_block + experts;
  s.active = s.local_id + experts;
  s.rest = words + sort_common_words(experts, p.bitmap_words);
  return s;
}

inline constexpr int kWarp = 32;
__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int num_threads() { return static_cast<int>(blockDim.x); }
__device__ inline int lane() { return thread() & 31; }

__device__ inline int32_t blocks_of(const SortParams& p, int32_t rows) {
  const int32_t unit = p.job.unit_size;
  return p.unit_shift >= 0 ? (rows + unit - 1) >> p.unit_shift : ceil_div(rows, unit);
}

/// value / divisor by ceil(2^32 / divisor), which stands for a divisor of 1 as 0.
__device__ inline int32_t quotient(int32_t value, uint32_t inverse) {
  return inverse == 0 ? value : static_cast<int32_t>(__umulhi(value, inverse));
}
/// Token of a pair, counted from the first of both.
__device__ inline int32_t token_of(const SortParams& p, int32_t pair) {
  return quotient(pair, p.top_k_inverse);
}
__device__ inline bool is_expert(const SortJob& job, int32_t id) {
  return static_cast<uint32_t>(id) < static_cast<uint32_t>(job.num_experts);
}
__device__ inline int32_t load_weight(const SortJob& job, int32_t pair) {
  constexpr int32_t kOneBits = 0x3f800000;  // 1.0f
  return job.topk_weights == nullptr ? kOneBits : __ldcg(job.topk_weights + pair);
}

/// Clears the bitmaps; ends unsynchronised. Touches shared memory only.
__device__ inline void clear_bitmaps(const SortParams& p, const SortShared& s) {
  for (int i = thread(); i < p.job.num_experts * p.bitmap_words; i += num_threads()) {
    s.bitmaps[i] = 0;
  }
  if (thread() == 0) *s.repeated = 0;
}
/// Signs of local_id; ends unsynchronised.
__device__ inline void load_mask(const SortParams& p, const SortShared& s) {
  if (p.job.expert_mask == nullptr) return;
  for (int e = thread(); e < p.job.num_experts; e += num_threads()) {
    s.local_id[e] = __ldcg(p.job.expert_mask + e) != 0 ? 0 : -1;
  }
}
__device__ inline bool takes_part(const SortParams& p, const SortShared& s, int e) {
  return e < p.job.num_experts && (p.job.expert_mask == nullptr || s.local_id[e] >= 0);
}
__device__ inline int32_t count_bits(const SortParams& p, const SortShared& s, int e) {
  int32_t count = 0;
  const uint32_t* words = s.bitmaps + e * p.bitmap_words;
  for (int w = 0; w < p.bitmap_words; ++w) count += __popc(words[w]);
  return count;
}
/// Pairs of this pass with the same expert and an earlier token.
__device__ inline int32_t rank_of(const SortParams& p, const SortShared& s, int32_t id,
                                  int32_t token) {
  const uint32_t* words = s.bitmaps + id * p.bitmap_words;
  int32_t rank = __popc(words[token / 32] & ((1u << (token % 32)) - 1u));
  for (int w = 0; w < token / 32; ++w) rank += __popc(words[w]);
  return rank;
}

/// Sum over the lanes before this one, and over all, of values of so many bits: a ballot per bit
/// has a shorter chain than shuffles while values are small.
struct LaneSums {
  int32_t before, all;
};
__device__ inline LaneSums sum_lanes(int32_t value, int bits) {
  const uint32_t lower = (1u << lane()) - 1u;
  LaneSums sums{0, 0};
  for (int bit = 0; bit < bits; ++bit) {
    const uint32_t lanes = __ballot_sync(~0u, (value >> bit & 1) != 0);
    sums.before += __popc(lanes & lower) << bit;
    sums.all += __popc(lanes) << bit;
  }
  return sums;
}

struct Placed {
  int32_t num_blocks, num_active;
};
/// From rows_of(expert), asked for experts that take part, to total, first_block, local_id and
/// active. No expert has more than 2^block_bits - 1 blocks. Experts go to warps in groups of 32.
/// Ends synchronised.
template <class RowsOf>
__device__ Placed place_experts(const SortParams& p, const SortShared& s, int32_t block_bits,
                                RowsOf rows_of) {
  const int num_groups = ceil_div(p.job.num_experts, 32);
  const int num_warps = num_threads() / 32;
  const uint32_t lower = (1u << lane()) - 1u;
  for (int group = thread() / 32; group < num_groups; group += num_warps) {
    const int e = group * 32 + lane();
    const bool local = takes_part(p, s, e);
    const int32_t rows = local ? rows_of(e) : 0;
    const LaneSums blocks = sum_lanes(blocks_of(p, rows), block_bits);
    const uint32_t with_rows = __ballot_sync(~0u, rows > 0);
    const uint32_t locals = __ballot_sync(~0u, local);
    if (e < p.job.num_experts) {
      s.total[e] = rows;
      s.first_block[e] = blocks.before;
      s.local_id[e] = local ? __popc(locals & lower) : -1;
    }
    if (lane() == 0) {
      s.group_sums[group] = {static_cast<uint32_t>(blocks.all),
                             static_cast<uint32_t>(__popc(with_rows) | __popc(locals) << 16)};
    }
  }
  __syncthreads();
  uint2 all{0, 0};
  for (int g = lane(); g < num_groups; g += 32) {
    all.x += s.group_sums[g].x;
    all.y += s.group_sums[g].y;
  }
  for (int group = thread() / 32; group < num_groups; group += num_warps) {
    uint2 before{0, 0};
    for (int g = lane(); g < group; g += 32) {
      before.x += s.group_sums[g].x;
      before.y += s.group_sums[g].y;
    }
    before.x = __reduce_add_sync(~0u, before.x);
    before.y = __reduce_add_sync(~0u, before.y);
    const int e = group * 32 + lane();
    const bool exists = e < p.job.num_experts;
    const bool active = exists && s.total[e] > 0;
    const uint32_t actives = __ballot_sync(~0u, active);
    if (active) s.active[(before.y & 0xffffu) + __popc(actives & lower)] = e;
    if (exists) s.first_block[e] += static_cast<int32_t>(before.x);
    if (exists && s.local_id[e] >= 0) s.local_id[e] += static_cast<int32_t>(before.y >> 16);
  }
  __syncthreads();
  return {static_cast<int32_t>(__reduce_add_sync(~0u, all.x)),
          static_cast<int32_t>(__reduce_add_sync(~0u, all.y) & 0xffffu)};
}

/// 16-byte vectors of a piece of the buffer to zero. Small pieces: SMs take one when they have
/// room.
inline constexpr int64_t kPieceVectors = 4096;
inline int64_t num_pieces(const SortJob& job) {
  return ceil_div<int64_t>(job.zeroed_bytes / 16, kPieceVectors);
}
template <int kThreads>
__device__ void zero_piece(const SortJob& job, int32_t piece) {
  auto* vectors = static_cast<uint4*>(job.zeroed);
  const int64_t count = job.zeroed_bytes / 16;
  const int64_t first = piece * kPieceVectors + thread();
#pragma unroll
  for (int i = 0; i < static_cast<int>(kPieceVectors) / kThreads; ++i) {
    if (first + i * kThreads < count) vectors[first + i * kThreads] = uint4{0, 0, 0, 0};
  }
}

__device__ inline void write_row(const SortJob& job, int32_t row, int32_t packed, int32_t weight) {
  job.sorted_ids[row] = packed;
  if (job.sorted_weights != nullptr) job.sorted_weights[row] = weight;
  if (job.m_indices != nullptr) job.m_indices[row] = packed_token(packed);
}
/// What the optional maps say about a pair; row -1: skipped.
__device__ inline void write_pair(const SortJob& job, int32_t pair, int32_t row, int32_t local_id) {
  if (job.local_topk_ids != nullptr) job.local_topk_ids[pair] = local_id;
  if (job.reverse_sorted != nullptr) job.reverse_sorted[pair] = row;
}

/// Everything that is not a pair's row, by thread `at` of `step` (whole warps): block ids, padding,
/// the tail of the lists, counts.
__device__ inline void finish_lists(const SortParams& p, const SortShared& s, const Placed& placed,
                                    int32_t num_tokens, int32_t at, int32_t step) {
  const SortJob& job = p.job;
  const int32_t padding = pack_pair(job.tokens.limit, job.top_k);
  for (int i = at / 32; i < placed.num_active; i += step / 32) {
    const int e = s.active[i];
    const int32_t first = s.first_block[e];
    const int32_t rows = s.total[e];
    const int32_t blocks = blocks_of(p, rows);
    const int32_t local_id = s.local_id[e];
    for (int32_t b = lane(); b < blocks; b += 32) job.sorted_expert_ids[first + b] = local_id;
    const int32_t end = (first + blocks) * job.unit_size;
    for (int32_t r = first * job.unit_size + rows + lane(); r < end; r += 32) {
      write_row(job, r, padding, 0);
    }
  }
  for (int32_t r = placed.num_blocks * job.unit_size + at; r < job.capacity; r += step) {
    write_row(job, r, padding, 0);
  }
  for (int32_t b = placed.num_blocks + at; b < job.num_blocks; b += step) {
    job.sorted_expert_ids[b] = -1;
  }
  if (at > 0) return;
  job.num_valid_ids[0] = placed.num_blocks * job.unit_size;
  if (job.num_valid > 1) job.num_valid_ids[1] = num_tokens;
}

}  // namespace switchyard::cuda
