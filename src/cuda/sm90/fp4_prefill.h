#pragma once
// The prefill GEMM for 4-bit weights in fragment order: grouped_gemm.h's job on kernels that
// convert weights in registers, so that FP8 rows meet them at the FP8 rate.

#include <vector>

#include "cuda/sm90/grouped_gemm.h"

namespace switchyard::cuda::sm90 {

/// Every tile compiled in, tallest first; block_m sorted rows times block_n weight rows.
std::vector<GroupedGemmConfig> fp4_prefill_configs(const FragmentLayout& weights);

/// The one that wastes least for about this many rows per expert.
GroupedGemmConfig select_fp4_prefill_config(const FragmentLayout& weights, double rows_per_expert);

/// Enqueues. E4M3 rows have one scale each (or one for all).
void fp4_prefill(const GroupedGemmJob& job, const GroupedGemmConfig& config, int num_sms,
                 Stream stream);

}  // namespace switchyard::cuda::sm90
