#pragma once
// Down with its sum as the launcher sees it.

#include "core/down_sum_schedule.h"
#include "cuda/combine.h"
#include "cuda/sm90/grouped_gemm_kernels.h"

namespace switchyard::cuda::sm90 {

/// Weights that are converted: gemm.channel_scales are those of their rows.
struct DownSumFragments {
  const uint8_t* blocks;
  int64_t expert_bytes, row_block_bytes;
  int32_t col_blocks;
  bool deep;  ///< some are more than kMaxAddedSteps down
};

struct DownSumParams {
  GroupedGemmParams gemm;
  DownSumFragments fragments;
  CombineJob sum;
  const int32_t* pair_rows;  ///< [T][K]: sorted row; < 0: skipped
  uint8_t* ring;
  int64_t slot_bytes;
  int32_t num_slots, num_buffers;
  int32_t most_waves;  ///< of a CTA
  /// Per slab, 0 at the start: CTAs that have written, summed it.
  uint32_t *computed, *summed;
  DownSumShared shared;
};

/// All but what a tile decides; of grouped_gemm.cpp.
GroupedGemmParams grouped_gemm_params(const GroupedGemmJob& job, const CUtensorMap& weight_map);

using DownSumLauncher = void (*)(const DownSumParams&, int num_blocks, Stream);
void launch_down_sum_fp8_outer(const DownSumParams& params, int num_blocks, Stream stream);
void launch_down_sum_fp8_block(const DownSumParams& params, int num_blocks, Stream stream);
void launch_down_sum_mxfp4_fp8(const DownSumParams& params, int num_blocks, Stream stream);
void launch_down_sum_int8(const DownSumParams& params, int num_blocks, Stream stream);

}  // namespace switchyard::cuda::sm90
