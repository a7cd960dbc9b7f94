#pragma once
// How a GPU sorts T*K pairs: one thread block, or chunks of tokens counted by one kernel and placed
// by the next. A printable value, so that the choice can be read and tested without a GPU.
//
// Ranks come from bitmaps (one bit per token and expert): the rank of a pair is the number of set
// bits before its own, so no atomic decides the order.

#include <cstdint>

#include "core/math.h"

namespace switchyard {

enum class SortPath { kOneShot, kTwoPhase };

struct SortPlan {
  SortPath path = SortPath::kOneShot;
  int64_t num_chunks = 1;  ///< thread blocks that own tokens
  int64_t tokens_per_chunk = 0;
  int64_t tokens_per_pass = 0;  ///< tokens of a chunk whose bitmaps are in shared memory at once
  int64_t bitmap_words = 0;     ///< 32-bit words per expert; odd, so that experts change the bank
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;  ///< counts[num_chunks][count_stride] of uint16_t

  bool operator==(const SortPlan&) const = default;
};

inline constexpr int64_t kSortThreads = 1024;
/// Pairs that a thread keeps in registers between the two looks at them.
inline constexpr int64_t kSortPairsPerThread = 4;
inline constexpr int64_t kSortPairsPerPass = kSortThreads * kSortPairsPerThread;
/// Up to here one block is as fast as two kernels (H200, results/h200/sort.json).
inline constexpr int64_t kSortOneShotPairs = 2048;
/// About one chunk per SM: more chunks make every block read more counts.
inline constexpr int64_t kSortChunks = 128;
inline constexpr int64_t kSortMaxPartials = 8;

/// Counts of a chunk, padded so that a pair of them is one aligned word.
constexpr int64_t sort_count_stride(int64_t num_experts) {
  return align_up<int64_t>(num_experts, 2);
}
/// Blocks of threads that add up the chunks' counts, each over a part of the chunks.
constexpr int64_t sort_num_partials(int64_t num_experts) {
  const int64_t fit = kSortThreads / (sort_count_stride(num_experts) / 2);
  return fit < 1 ? 1 : fit < kSortMaxPartials ? fit : kSortMaxPartials;
}

/// Shared memory of the placing kernel: bitmaps; cursor, total, first block and local id of every
/// expert; the partial sums over chunks; scratch of the block-wide scan.
constexpr int64_t sort_shared_bytes(SortPath path, int64_t num_experts, int64_t bitmap_words) {
  const int64_t bitmaps = num_experts * bitmap_words;
  const int64_t per_expert = 4 * num_experts + 1;
  const int64_t partials = path == SortPath::kOneShot ? 0
                                                      : 2 * sort_num_partials(num_experts) *
                                                            sort_count_stride(num_experts);
  constexpr int64_t kScanWords = 2 * 34;  // and a flag
  return (kScanWords + align_up<int64_t>(bitmaps + per_expert + partials, 2)) * 4;
}

/// Every size is positive; top_k <= 127 and num_experts <= 4096 (validated before).
constexpr SortPlan plan_sort(int64_t num_tokens, int64_t top_k, int64_t num_experts) {
  SortPlan plan;
  constexpr int64_t kWordBits = 32;
  constexpr int64_t kMaxBitmapWords = 64 * 1024 / 4;  // a third of the shared memory of an SM
  const int64_t all_tokens = align_up(num_tokens < 1 ? int64_t{1} : num_tokens, kWordBits);
  if (num_tokens * top_k <= kSortOneShotPairs &&
      num_experts * (all_tokens / kWordBits | 1) <= kMaxBitmapWords) {
    plan.tokens_per_chunk = num_tokens;
    plan.tokens_per_pass = all_tokens;
  } else {
    plan.path = SortPath::kTwoPhase;
    const int64_t even_share = align_up(ceil_div(num_tokens, kSortChunks), kWordBits);
    constexpr int64_t kMaxCounted = 65535 / kWordBits * kWordBits;  // counts are 16 bits wide
    plan.tokens_per_chunk = even_share < kMaxCounted ? even_share : kMaxCounted;
    plan.num_chunks = ceil_div(num_tokens, plan.tokens_per_chunk);
    plan.workspace_bytes = plan.num_chunks * sort_count_stride(num_experts) * 2;
    const int64_t by_registers = kSortPairsPerPass / top_k / kWordBits * kWordBits;
    const int64_t by_bitmaps = kMaxBitmapWords / num_experts * kWordBits;
    int64_t pass = by_registers < by_bitmaps ? by_registers : by_bitmaps;
    if (pass < kWordBits) pass = kWordBits;
    plan.tokens_per_pass = pass < plan.tokens_per_chunk ? pass : plan.tokens_per_chunk;
  }
  plan.bitmap_words = (plan.tokens_per_pass / kWordBits) | 1;
  plan.shared_bytes = sort_shared_bytes(plan.path, num_experts, plan.bitmap_words);
  return plan;
}

/// Scratch for any batch of up to max_tokens tokens.
constexpr int64_t sort_scratch_bytes(int64_t max_tokens, int64_t top_k, int64_t num_experts) {
  const SortPlan plan = plan_sort(max_tokens, top_k, num_experts);
  if (plan.path == SortPath::kOneShot) return 0;
  const int64_t chunks = plan.num_chunks > kSortChunks ? plan.num_chunks : kSortChunks;
  return chunks * sort_count_stride(num_experts) * 2;
}

}  // namespace switchyard
