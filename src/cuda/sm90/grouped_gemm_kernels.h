#pragma once
// The prefill kernels as their launcher sees them: parameters, and the list of what was compiled.

#include <cuda.h>

#include "cuda/gated_curve.cuh"
#include "cuda/sm90/grouped_gemm.h"

namespace switchyard::cuda::sm90 {

struct GroupedGemmParams {
  CUtensorMap weight_map;
  CUtensorMap row_map;  ///< RowSource::kSorted
  SortedRows sorted;
  uint32_t* tile_counter;                ///< 0 at the start
  int32_t num_weight_rows, num_columns;  ///< num_columns: output columns
  int32_t row_bytes_k;                   ///< bytes of K
  int32_t num_k_blocks;
  int32_t unit_columns;     ///< tiles of a row block that a CTA takes at a time
  int32_t tiles_per_block;  ///< of the sort, one above the other

  const uint8_t* input;  ///< gathered
  int64_t input_row_bytes;
  RowSource source;

  /// Row r and group g: row_scales[r * row_scale_stride + g * row_scale_step].
  const float* row_scales;
  int32_t row_scale_stride, row_scale_step;
  const float* channel_scales;  ///< [E][weight rows] or null
  const float* block_scales;    ///< block_scale_table() or null
  const float* bias;            ///< [E][weight rows] or null

  ActivationSpec activation_spec;
  GatedCurve curve;
  bool weight_before_bias, weight_after, square;
  bool output_per_pair;
  void* output;  ///< bf16; E4M3 where there are output_scales
  int64_t output_stride;
  float* output_scales;  ///< [rows][groups of 128 columns] or null
};

using GroupedGemmLauncher = void (*)(const GroupedGemmParams&, int num_blocks, Stream);

/// What a layer needs of one config: gate and up, up alone, down.
struct GroupedGemmVariants {
  GroupedGemmConfig config;
  GroupedGemmLauncher gathered_gated, gathered_rows, sorted_rows;
};
struct GroupedGemmVariantList {
  const GroupedGemmVariants* variants;
  int count;
};
/// One per pair of type and scaling that has kernels, each in its own translation unit; the best
/// for many rows comes first.
GroupedGemmVariantList bf16_variants();
GroupedGemmVariantList fp8_outer_variants();
GroupedGemmVariantList fp8_block_variants();
GroupedGemmVariantList int8_variants();

}  // namespace switchyard::cuda::sm90
