#pragma once
// Down and the sum over a token's slots in one kernel, for batches whose rows of K fit the shared
// memory of all SMs: the experts' outputs then never leave the L2.

#include "core/down_sum_schedule.h"
#include "cuda/combine.h"
#include "cuda/sm90/grouped_gemm.h"

namespace switchyard::cuda::sm90 {

struct DownSumJob {
  GroupedGemmJob down{};               ///< RowSource::kSorted, no activation; no output of its own
  CombineJob sum{};                    ///< without weights, ids or a residual
  const int32_t* pair_rows = nullptr;  ///< [T][K]: a pair's sorted row; < 0: skipped
  void* ring = nullptr;                ///< plan.ring_bytes()
  uint32_t* counters = nullptr;        ///< plan.counter_bytes(), 0 at the start
};

/// The bits of grouped_gemm() and combine().
void down_sum(const DownSumJob& job, const DownSumPlan& plan, int num_sms, Stream stream);

}  // namespace switchyard::cuda::sm90
