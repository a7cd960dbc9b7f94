#pragma once
// Pairs grouped by expert: the packed form of the public sort contract, its sizes, and the inverse
// maps that the backends use inside.

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"

namespace switchyard {

/// A packed id is slot << 24 | token. Padding is the pair one past the last: slot K, token T.
inline constexpr int kPackedTokenBits = 24;
inline constexpr int32_t kPackedTokenMask = (int32_t{1} << kPackedTokenBits) - 1;

SWITCHYARD_HOST_DEVICE constexpr int32_t pack_pair(int64_t token, int64_t slot) {
  return static_cast<int32_t>(slot << kPackedTokenBits | token);
}
SWITCHYARD_HOST_DEVICE constexpr int32_t packed_token(int32_t packed) {
  return packed & kPackedTokenMask;
}
SWITCHYARD_HOST_DEVICE constexpr int32_t packed_slot(int32_t packed) {
  return packed >> kPackedTokenBits;
}

/// Whether a pair takes part: its id is an expert, and a local one when there is a mask [E].
SWITCHYARD_HOST_DEVICE constexpr bool takes_part(int32_t id, int64_t num_experts,
                                                 const int32_t* expert_mask = nullptr) {
  return id >= 0 && id < num_experts && (expert_mask == nullptr || expert_mask[id] != 0);
}

/// The most rows that blocks can cover: n = min(E, T*K) experts, each with up to unit - 1 rows of
/// padding. An output of sort must hold at least this.
SWITCHYARD_HOST_DEVICE constexpr int64_t max_padded_rows(int64_t num_tokens, int64_t top_k,
                                                         int64_t num_experts, int64_t unit_size) {
  const int64_t num_pairs = num_tokens * top_k;
  const int64_t num_used = num_pairs < num_experts ? num_pairs : num_experts;
  return (num_pairs + num_used * (unit_size - 1)) / unit_size * unit_size;
}

/// Rows to allocate for sort's outputs: T*K + min(E, T*K) * unit - K, rounded up to whole blocks so
/// that a kernel may load the last block before it checks a bound.
SWITCHYARD_HOST_DEVICE constexpr int64_t sort_capacity(int64_t num_tokens, int64_t top_k,
                                                       int64_t num_experts, int64_t unit_size) {
  const int64_t num_pairs = num_tokens * top_k;
  const int64_t num_used = num_pairs < num_experts ? num_pairs : num_experts;
  return num_pairs == 0 ? 0 : align_up(num_pairs + num_used * unit_size - top_k, unit_size);
}

/// Groups the pairs of topk_ids [T, K] by expert: ascending experts, ascending pairs inside one
/// (so token-ascending). Ids < 0 or >= E are skipped. R = expert_offsets[E] rows come out;
/// row_to_pair [T*K] is written up to R, pair_to_row [T*K] completely, -1 for a skipped pair.
/// Either map may be null. An expert repeated in a row of topk_ids simply gets several rows.
inline void sort_pairs(const int32_t* topk_ids, int64_t num_tokens, int64_t top_k,
                       int64_t num_experts, int32_t* expert_offsets, int32_t* row_to_pair,
                       int32_t* pair_to_row) {
  const int64_t num_pairs = num_tokens * top_k;
  for (int64_t e = 0; e <= num_experts; ++e) expert_offsets[e] = 0;
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    if (takes_part(topk_ids[pair], num_experts)) ++expert_offsets[topk_ids[pair] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) expert_offsets[e + 1] += expert_offsets[e];

  // Each first row serves as its expert's cursor and ends as the next expert's first row.
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const bool has_row = takes_part(topk_ids[pair], num_experts);
    const int32_t row = has_row ? expert_offsets[topk_ids[pair]]++ : -1;
    if (has_row && row_to_pair != nullptr) row_to_pair[row] = static_cast<int32_t>(pair);
    if (pair_to_row != nullptr) pair_to_row[pair] = row;
  }
  for (int64_t e = num_experts; e > 0; --e) expert_offsets[e] = expert_offsets[e - 1];
  expert_offsets[0] = 0;
}

}  // namespace switchyard
