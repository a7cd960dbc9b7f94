#pragma once
// How a GPU sorts T*K pairs, as a printable value that can be read and tested without a GPU.
//
// One-shot: a few thread blocks rank the whole batch redundantly, each writes its share of the
// rows. Few tokens: the same with everything in fixed places, and two barriers between the ids and
// the rows. Chunked: one kernel publishes how many pairs each expert has in every chunk of tokens;
// the next ranks the chunks meanwhile, and then knows where their rows begin.
//
// Ranks come from bitmaps (one bit per token and expert): the rank of a pair is the number of set
// bits before its own, so no atomic decides the order. Where a token names an expert twice, ids are
// counted one by one instead.

#include <cstdint>

#include "core/expert_sort.h"
#include "core/math.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

enum class SortPath { kFewTokens, kOneShot, kChunked };

struct SortPlan {
  SortPath path = SortPath::kOneShot;
  int64_t num_blocks = 1;  ///< thread blocks that sort (chunks); the rest of the grid zeroes
  int64_t threads = 0;
  int64_t tokens_per_chunk = 0;
  int64_t tokens_per_pass = 0;  ///< tokens of a chunk whose bitmaps are in shared memory at once
  int64_t bitmap_words = 0;     ///< 32-bit words per expert; odd, so that experts change the bank
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;  ///< sort_counts_bytes

  bool operator==(const SortPlan&) const = default;
};

/// Most instructions are per thread, not per pair, so more threads are slower.
inline constexpr int64_t kSortThreads = 512;
/// What kFewTokens takes: two words of a bitmap, four experts and four pairs per thread, and a unit
/// by whose inverse rows can be divided.
inline constexpr int64_t kSortFewTokens = 64;
inline constexpr int64_t kSortFewExperts = 1024;
inline constexpr int64_t kSortFewPairs = 1024;
inline constexpr int64_t kSortFewUnit = 1024;
/// Two warps per scheduler: what every warp does costs more than what it shares.
inline constexpr int64_t kSortFewThreads = 256;
/// Pairs of one pass of the chunked path, staged in sorted order.
inline constexpr int64_t kSortPairsPerPass = 4096;
/// Above this a chunk for every block is faster than ranking everything in each
/// (H200, results/h200/steps.json).
inline constexpr int64_t kSortOneShotPairs = 8192;
/// About one chunk for every SM.
inline constexpr int64_t kSortMaxChunks = 128;
/// Blocks of a cluster add up their chunks' counts: every placing block reads one row per cluster
/// and one of its own. Reading a row per chunk took 10 us of 22 at T = 16384.
inline constexpr int64_t kSortClusterChunks = 8;
inline constexpr int64_t kSortMaxBitmapWords = 64 * 1024 / 4;

/// Counts of a chunk, padded so that a pair of them is one aligned word.
constexpr int64_t sort_count_stride(int64_t num_experts) {
  return align_up<int64_t>(num_experts, 2);
}
/// 16-bit counts of every chunk and of every cluster, which can be as many.
constexpr int64_t sort_counts_bytes(int64_t num_chunks, int64_t num_experts) {
  return 2 * num_chunks * sort_count_stride(num_experts) * 2;
}

/// Sums of 32 experts each, two words a sum.
inline constexpr int64_t kSortScanWords = 2 * kMaxExperts / 32;
/// 32-bit words of shared memory that the other two paths begin with: scratch of the scan over
/// experts and flags; bitmaps; total, first block and local id of every expert, list of the active
/// ones.
constexpr int64_t sort_common_words(int64_t num_experts, int64_t bitmap_words) {
  return align_up<int64_t>(kSortScanWords + 2 + num_experts * (bitmap_words + 4), 2);
}

namespace detail {

inline constexpr int64_t kWordBits = 32;

constexpr SortPlan plan_one_shot(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                 int64_t unit_size) {
  SortPlan plan;
  plan.threads = kSortThreads;
  plan.tokens_per_chunk = num_tokens;
  plan.tokens_per_pass = align_up(num_tokens < 1 ? int64_t{1} : num_tokens, kWordBits);
  plan.bitmap_words = (plan.tokens_per_pass / kWordBits) | 1;
  // One pair per thread to place, and about one row to pad.
  const int64_t rows = max_padded_rows(num_tokens, top_k, num_experts, unit_size);
  const int64_t by_pairs = ceil_div(num_tokens * top_k, plan.threads);
  const int64_t by_rows = ceil_div(rows, plan.threads);
  constexpr int64_t kMaxBlocks = 32;
  plan.num_blocks = by_rows < kMaxBlocks ? by_rows : kMaxBlocks;
  if (plan.num_blocks < by_pairs) plan.num_blocks = by_pairs;
  if (plan.num_blocks < 1) plan.num_blocks = 1;
  plan.shared_bytes = sort_common_words(num_experts, plan.bitmap_words) * 4;
  return plan;
}

constexpr SortPlan plan_few_tokens(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                   int64_t unit_size) {
  SortPlan plan = plan_one_shot(num_tokens, top_k, num_experts, unit_size);
  plan.path = SortPath::kFewTokens;
  plan.threads = kSortFewThreads;
  plan.shared_bytes = 0;  // static
  const int64_t rows = max_padded_rows(num_tokens, top_k, num_experts, unit_size);
  const int64_t by_pairs = ceil_div(num_tokens * top_k, plan.threads);
  const int64_t by_rows = ceil_div(rows, plan.threads);
  constexpr int64_t kMaxBlocks = 48;  // E1024 K16 T=64: 2.62 us; 64: 2.71, 128: 3.35
  plan.num_blocks = by_rows < kMaxBlocks ? by_rows : kMaxBlocks;
  if (plan.num_blocks < by_pairs) plan.num_blocks = by_pairs;
  return plan;
}

constexpr SortPlan plan_chunked(int64_t num_tokens, int64_t top_k, int64_t num_experts) {
  SortPlan plan{.path = SortPath::kChunked, .threads = kSortThreads};
  const int64_t even_share = align_up(ceil_div(num_tokens, kSortMaxChunks), kWordBits);
  const int64_t most_counted =  // counts of a cluster are 16 bits wide, all may be of one expert
      65535 / (kSortClusterChunks * top_k) / kWordBits * kWordBits;
  plan.tokens_per_chunk = even_share < most_counted ? even_share : most_counted;
  plan.num_blocks = ceil_div(num_tokens, plan.tokens_per_chunk);
  plan.workspace_bytes = sort_counts_bytes(plan.num_blocks, num_experts);
  const int64_t by_pairs = kSortPairsPerPass / top_k / kWordBits * kWordBits;
  const int64_t by_bitmaps = kSortMaxBitmapWords / num_experts * kWordBits;
  int64_t pass = by_pairs < by_bitmaps ? by_pairs : by_bitmaps;
  if (pass < kWordBits) pass = kWordBits;
  plan.tokens_per_pass = pass < plan.tokens_per_chunk ? pass : plan.tokens_per_chunk;
  plan.bitmap_words = (plan.tokens_per_pass / kWordBits) | 1;
  // Staged pairs (pair and expert in one word, weight in another); offset of every expert among
  // them, its rows before them and in all.
  plan.shared_bytes = (sort_common_words(num_experts, plan.bitmap_words) + 2 * kSortPairsPerPass +
                       num_experts + 2 * sort_count_stride(num_experts)) *
                      4;
  return plan;
}

}  // namespace detail

/// The path's kernels, for a plan that people read.
constexpr const char* sort_kernels(const SortPlan& plan) {
  return plan.path == SortPath::kFewTokens ? "sort_few"
         : plan.path == SortPath::kOneShot ? "sort_one_shot"
                                           : "sort_count, sort_place";
}

/// Every size is positive; top_k <= 127 and num_experts <= 4096 (validated before).
constexpr SortPlan plan_sort(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                             int64_t unit_size, int64_t one_shot_pairs = kSortOneShotPairs) {
  if (num_tokens >= 1 && num_tokens <= kSortFewTokens && num_experts <= kSortFewExperts &&
      num_tokens * top_k <= kSortFewPairs && num_tokens * top_k <= one_shot_pairs &&
      unit_size <= kSortFewUnit) {
    return detail::plan_few_tokens(num_tokens, top_k, num_experts, unit_size);
  }
  const int64_t words = (ceil_div(num_tokens, detail::kWordBits) | 1) * num_experts;
  if (num_tokens * top_k <= one_shot_pairs && words <= kSortMaxBitmapWords) {
    return detail::plan_one_shot(num_tokens, top_k, num_experts, unit_size);
  }
  return detail::plan_chunked(num_tokens, top_k, num_experts);
}

/// Scratch for any batch of up to max_tokens tokens.
constexpr int64_t sort_scratch_bytes(int64_t max_tokens, int64_t top_k, int64_t num_experts) {
  const SortPlan plan = plan_sort(max_tokens, top_k, num_experts, 1);
  if (plan.path != SortPath::kChunked) return 0;
  const int64_t chunks = plan.num_blocks > kSortMaxChunks ? plan.num_blocks : kSortMaxChunks;
  return sort_counts_bytes(chunks, num_experts);
}

}  // namespace switchyard
