#pragma once
// Rows of tokens as the prefill GEMMs multiply them with a layer's weights.

#include "core/activation_format.h"
#include "core/scale_layout.h"
#include "cuda/quantize.h"
#include "cuda/stored_rows.h"

namespace switchyard::cuda::sm90 {

/// Two tile counters, in the sort's unit of zeroing.
inline constexpr int64_t kTileCounterBytes = 16;

inline bool in_fragment_order(const WeightRows& w) {
  return w.fragments.order != FragmentOrder::kRowMajor;
}

inline bool is_mx(ActivationFormat activations) {
  return activations == ActivationFormat::kMxfp8 || activations == ActivationFormat::kMxfp4;
}
/// What the matrix unit multiplies with the weights.
inline Format operand_format(ActivationFormat activations, const WeightRows& weights) {
  const bool bf16 = weights.fragments.order == FragmentOrder::kBf16;
  if (bf16 || activations == ActivationFormat::kNone) return Format::kBf16;
  return is_mx(activations) ? Format::kFp8E4m3 : activation_storage(activations).format;
}

/// Codes of rows of `cols` numbers, as the quantiser writes and the GEMM reads them.
struct CodedRows {
  QuantizeJob job;
  StoredRows rows;
};
inline CodedRows coded_rows(ActivationFormat activations, int64_t cols, void* codes, void* scales) {
  const ActivationStorage storage = activation_storage(activations);
  const bool per_tensor = storage.scale_block.rows == 0;
  CodedRows coded;
  coded.job = {.cols = cols,
               .format = storage.format,
               .scale_block = storage.scale_block,
               .values = codes,
               .value_row_bytes = padded_row_bytes(storage.format, cols),
               .scales = scales,
               .scale_type = DataType::kF32};
  coded.rows = {
      .format = storage.format,
      .values = codes,
      .row_bytes = coded.job.value_row_bytes,
      .scale_kind = ScaleKind::kF32,
      .scales = scales,
      // No groups: every row starts at scale 0.
      .num_groups = per_tensor ? 0 : static_cast<int32_t>(scale_cols(storage.scale_block, cols)),
      .group_size = static_cast<int32_t>(storage.scale_block.cols)};
  return coded;
}

}  // namespace switchyard::cuda::sm90
