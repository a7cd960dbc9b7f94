#pragma once
// The prefill GEMM for 4-bit weights in fragment order: grouped_gemm.h's job on kernels that
// convert weights in registers, so that FP8 rows meet them at the FP8 rate.

#include <vector>

#include "core/fp4_prefill_cost.h"
#include "cuda/sm90/grouped_gemm.h"

namespace switchyard::cuda::sm90 {

/// Every tile compiled in, tallest first; block_m sorted rows times block_n weight rows.
/// block_scales: E4M3 rows have a scale per 128 columns.
std::vector<GroupedGemmConfig> fp4_prefill_configs(const FragmentLayout& weights,
                                                   bool block_scales = false);

/// The one under which both GEMMs of a layer, which share the sorted rows, take least.
GroupedGemmConfig select_fp4_prefill_config(const Fp4PrefillWork& gate_up,
                                            const Fp4PrefillWork& down, int num_sms);

/// Enqueues. E4M3 rows have one scale each (or one for all), or as many as input.group_size says.
void fp4_prefill(const GroupedGemmJob& job, const GroupedGemmConfig& config, int num_sms,
                 Stream stream);

}  // namespace switchyard::cuda::sm90
