#pragma once
// Routing and sorting of a decode batch in one launch.

#include "cuda/route.h"
#include "cuda/sm90/round_rows.h"
#include "cuda/sort.h"

namespace switchyard::cuda::sm90 {

inline constexpr int64_t kRouteSortTopK = 32;  ///< fused shared experts included; a lane has one

/// Whether a kernel has room for so many experts, the routed and all.
bool can_route_sort(int64_t num_routed, int64_t num_experts);

/// `sort` reads what `route` writes: a batch that core/sort_plan.h has kFewTokens for, not of hash
/// layers, whose rows may repeat an expert. Further blocks do `round` meanwhile. by_choice: of a
/// single token, whose k-th block shall hold its k-th choice; else blocks are in order of experts.
void route_sort(const RouteJob& route, const SortJob& sort, const RoundJob& round, Stream stream,
                bool by_choice = false);

}  // namespace switchyard::cuda::sm90
