#pragma once
// The prefill kernels for 4-bit weights as their launcher sees them.

#include <cuda.h>

#include "cuda/sm90/grouped_gemm.h"
#include "cuda/sm90/grouped_gemm_kernels.h"

namespace switchyard::cuda::sm90 {

struct Fp4PrefillParams {
  CUtensorMap row_map;  ///< RowSource::kSorted
  SortedRows sorted;
  uint32_t* tile_counter;  ///< 0 at the start
  int32_t unit_columns;    ///< tiles of a row block that a CTA takes at a time
  const uint8_t* weights;  ///< blocks in fragment order
  bool deep;               ///< some are more than kMaxAddedSteps down
  int64_t expert_bytes, row_block_bytes;
  int32_t num_row_blocks, num_col_blocks;
  int32_t num_weight_rows, num_columns;  ///< num_columns: output columns
  int32_t num_k_blocks;
  int32_t row_bytes_k;             ///< bytes of K
  const float* weight_row_scales;  ///< [E][weight rows]
  const float* bias;               ///< [E][weight rows] or null

  const uint8_t* input;  ///< gathered
  int64_t input_row_bytes;
  RowSource source;
  /// Bytes: of input row r at r * row_scale_stride, one for the row or one per 128 columns.
  const float* row_scales;
  int32_t row_scale_stride;

  ActivationSpec activation_spec;
  GatedCurve curve;
  bool weight_before_bias, weight_after, square;
  bool output_per_pair;
  uint16_t* output;
  int64_t output_stride;
};

using Fp4PrefillLauncher = void (*)(const Fp4PrefillParams&, int num_blocks, Stream);

/// What a layer needs of one tile: gate and up, up alone, down.
struct Fp4PrefillVariants {
  GroupedGemmConfig config;
  Fp4PrefillLauncher gathered_gated, gathered_rows, sorted_rows;
};
struct Fp4PrefillVariantList {
  const Fp4PrefillVariants* variants;
  int count;
};
/// Each in its own translation unit, tallest tile first.
Fp4PrefillVariantList fp4_prefill_fp8();
Fp4PrefillVariantList fp4_prefill_fp8_block128();
Fp4PrefillVariantList fp4_prefill_bf16();
Fp4PrefillVariantList fp4_prefill_nvfp4();
Fp4PrefillVariantList fp4_prefill_nvfp4_fp8();
Fp4PrefillVariantList fp4_prefill_int4_g32();
Fp4PrefillVariantList fp4_prefill_int4_g64();
Fp4PrefillVariantList fp4_prefill_int4_zeros_g32();
Fp4PrefillVariantList fp4_prefill_int4_zeros_g64();
Fp4PrefillVariantList fp4_prefill_int4_fp8_g32();
Fp4PrefillVariantList fp4_prefill_int4_fp8_g64();
Fp4PrefillVariantList fp4_prefill_int4_zeros_fp8_g64();
Fp4PrefillVariantList fp4_prefill_int4_int8_g32();
Fp4PrefillVariantList fp4_prefill_int4_int8_g64();
Fp4PrefillVariantList fp4_prefill_int4_zeros_int8_g64();
Fp4PrefillVariantList fp4_prefill_mxfp8();

}  // namespace switchyard::cuda::sm90
