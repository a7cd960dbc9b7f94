#pragma once
// How blocks rank a batch of few tokens, each the whole of it: what core/sort_plan.h's kFewTokens
// and the launch that routes too have in common. An expert is a thread's, and a pair another's.
//
//   clear_few, barrier, mark_pairs, barrier, place_few_experts, barrier: every expert has its place
//   write_few_pair; list_few_blocks, barrier, write_few_lists
//
// The chain is as short as it is because nothing waits for a second time: marks of one thread
// overlap, groups of experts get the sum of those before them by atomic adds, not by a scan, and
// the lists are written row by row from a table of blocks.

#include "cuda/sort_batch.cuh"

namespace switchyard::cuda {

inline constexpr int kFewThreads = static_cast<int>(kSortFewThreads);
inline constexpr int kFewExperts = static_cast<int>(kSortFewExperts);
inline constexpr int kFewGroups = kFewExperts / kWarp;

struct alignas(16) SortFewShared {
  uint32_t bitmaps[2][kFewExperts];  // tokens 0 to 31, then 32 to 63
  // Blocks of the group's experts before this one; in the high half how many of these are local.
  uint32_t place[kFewExperts];
  uint32_t before_group[kFewGroups + 1];  // the same of all experts before a group of 32; of all
  uint32_t blocks[kSortFewPairs];         // rows of a block; in the high half its expert's local id
};
inline constexpr uint32_t kNotLocal = 1u << 31;  // of a place

__device__ inline int32_t low_half(uint32_t word) { return static_cast<int32_t>(word & 0xffffu); }

/// Ends unsynchronised.
__device__ inline void clear_few(SortFewShared& s) {
  auto* vectors = reinterpret_cast<uint4*>(s.bitmaps);
#pragma unroll
  for (int i = 0; i < 2 * kFewExperts / 4; i += kFewThreads) vectors[i + thread()] = uint4{};
  if (thread() <= kFewGroups) s.before_group[thread()] = 0;
}

/// A pair of a token that exists; none: id -1.
struct FewPair {
  int32_t id, token;
};
/// Marks a thread's pairs, all at once. True when a token was found to name an expert twice.
template <int kPairs>
__device__ bool mark_pairs(const SortJob& job, SortFewShared& s, const FewPair (&pairs)[kPairs]) {
  uint32_t twice = 0;
#pragma unroll
  for (const FewPair& pair : pairs) {
    const bool exists = is_expert(job, pair.id);
    const uint32_t bit = exists ? 1u << (pair.token & 31) : 0;
    uint32_t* word = &s.bitmaps[pair.token >> 5][exists ? pair.id : thread()];
    twice |= atomicOr(word, bit) & bit;
  }
  return twice != 0;
}

/// Pairs before `end` that name the expert, one by one: what bits do not tell when a token names an
/// expert twice.
__device__ inline int32_t count_few_ids(const SortJob& job, int32_t id, int32_t end) {
  int32_t count = 0;
#pragma unroll 1
  for (int32_t pair = 0; pair < end; ++pair) count += job.topk_ids[pair] == id ? 1 : 0;
  return count;
}

/// Pairs with the same expert and an earlier token.
__device__ inline int32_t rank_of_few(const SortFewShared& s, int32_t id, int32_t token) {
  const uint32_t earlier = (1u << (token & 31)) - 1u;
  const int32_t first = __popc(s.bitmaps[0][id] & (token < 32 ? earlier : ~0u));
  return first + __popc(s.bitmaps[1][id] & (token < 32 ? 0 : earlier));
}

/// A thread's experts: lane l of group g has expert 32 g + l, and groups go to warps in turn.
template <int kGroups>
struct FewExperts {
  int32_t rows[kGroups];
  uint32_t place[kGroups];

  __device__ static int group(int j) { return (thread() >> 5) + j * (kFewThreads / kWarp); }
  __device__ static int expert(int j) { return group(j) * kWarp + lane(); }
};
/// Which of a thread's experts take part.
template <int kGroups>
__device__ void load_few_mask(const SortJob& job, bool (&local)[kGroups]) {
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const int e = FewExperts<kGroups>::expert(j);
    local[j] =
        job.expert_mask == nullptr || (e < job.num_experts && __ldcg(job.expert_mask + e) != 0);
  }
}
/// From bitmaps to the places of experts. Ends unsynchronised.
template <int kGroups>
__device__ FewExperts<kGroups> place_few_experts(const SortParams& p, SortFewShared& s,
                                                 const bool (&local)[kGroups], bool repeated,
                                                 int32_t num_live) {
  using Experts = FewExperts<kGroups>;
  Experts experts;
  int32_t blocks[kGroups];
  uint32_t all[kGroups];
  const uint32_t lower = (1u << lane()) - 1u;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const int e = Experts::expert(j);
    int32_t rows = __popc(s.bitmaps[0][e]) + __popc(s.bitmaps[1][e]);
    if (repeated) rows = count_few_ids(p.job, e, num_live);
    experts.rows[j] = local[j] ? rows : 0;
    blocks[j] = quotient(experts.rows[j] + p.job.unit_size - 1, p.unit_inverse);
    experts.place[j] = static_cast<uint32_t>(lane()) << 16;
    all[j] = kWarp << 16;
    if (p.job.expert_mask != nullptr) {
      const uint32_t locals = __ballot_sync(~0u, local[j]);
      experts.place[j] = static_cast<uint32_t>(__popc(locals & lower)) << 16;
      all[j] = static_cast<uint32_t>(__popc(locals)) << 16;
    }
  }
  const int32_t bits = repeated ? p.repeated_block_bits : p.block_bits;
#pragma unroll 1
  for (int bit = 0; bit < bits; ++bit) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint32_t lanes = __ballot_sync(~0u, (blocks[j] >> bit & 1) != 0);
      experts.place[j] += static_cast<uint32_t>(__popc(lanes & lower)) << bit;
      all[j] += static_cast<uint32_t>(__popc(lanes)) << bit;
    }
  }
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    s.place[Experts::expert(j)] = experts.place[j] | (local[j] ? 0 : kNotLocal);
    if (lane() >= Experts::group(j)) atomicAdd(&s.before_group[lane() + 1], all[j]);
  }
  return experts;
}

/// The row of a pair, `rank`-th of its expert's, or -1; and everything that the outputs say of it.
__device__ inline void write_few_pair(const SortParams& p, const SortFewShared& s,
                                      const FewPair& pair, int32_t rank, int32_t at,
                                      int32_t weight) {
  const SortJob& job = p.job;
  int32_t row = -1;
  int32_t local_id = -1;
  if (is_expert(job, pair.id)) {
    const uint32_t place = s.before_group[pair.id >> 5] + s.place[pair.id];
    if ((place & kNotLocal) == 0) {
      row = low_half(place) * job.unit_size + rank;
      local_id = static_cast<int32_t>(place >> 16);
      write_row(job, row, pack_pair(pair.token, at - pair.token * job.top_k), weight);
    }
  }
  write_pair(job, at, row, local_id);
}

/// The table of blocks. Ends unsynchronised.
template <int kGroups>
__device__ void list_few_blocks(const SortParams& p, SortFewShared& s,
                                const FewExperts<kGroups>& experts) {
  const int32_t unit = p.job.unit_size;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const uint32_t place = s.before_group[experts.group(j)] + experts.place[j];
    int32_t block = low_half(place);
#pragma unroll 1
    for (int32_t left = experts.rows[j]; left > 0; left -= unit, ++block) {
      s.blocks[block] = static_cast<uint32_t>(min(left, unit)) | (place & 0xffff0000u);
    }
  }
}
/// Everything that is not a pair's row, by thread `at` of `step`: padding, blocks, counts.
__device__ inline void write_few_lists(const SortParams& p, const SortFewShared& s,
                                       int32_t num_tokens, int32_t at, int32_t step) {
  const SortJob& job = p.job;
  const int32_t num_blocks = low_half(s.before_group[kFewGroups]);
  const int32_t padding = pack_pair(job.tokens.limit, job.top_k);
#pragma unroll 1
  for (int32_t row = at; row < job.capacity; row += step) {
    const int32_t block = quotient(row, p.unit_inverse);
    const bool pads =
        block >= num_blocks || row - block * job.unit_size >= low_half(s.blocks[block]);
    if (pads) write_row(job, row, padding, 0);
  }
#pragma unroll 1
  for (int32_t block = at; block < job.num_blocks; block += step) {
    job.sorted_expert_ids[block] =
        block < num_blocks ? static_cast<int32_t>(s.blocks[block] >> 16) : -1;
  }
  if (at > 0) return;
  job.num_valid_ids[0] = num_blocks * job.unit_size;
  if (job.num_valid > 1) job.num_valid_ids[1] = num_tokens;
}

}  // namespace switchyard::cuda
