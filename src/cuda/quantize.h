#pragma once
// Rows to a quantised format, with the batch as a kernel sees it; ops::quantize and the experts
// both come here.

#include "cuda/stored_rows.h"
#include "cuda/token_count.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda {

struct QuantizeJob {
  const void* input = nullptr;  ///< [rows][cols]
  DataType input_type = DataType::kF32;
  int64_t num_input_rows = 0;
  int64_t cols = 0;
  TokenCount rows{};                   ///< output rows; unless sorted
  const int32_t* row_index = nullptr;  ///< output row r is input row row_index[r], or null

  /// Sorted (ops::SortArgs): every pair of [0, num_sorted) goes to row token * top_k + slot; its
  /// input row is the same (input_per_pair) or its token.
  const int32_t* sorted_ids = nullptr;
  const int32_t* sorted_expert_ids = nullptr;
  const int32_t* num_valid_ids = nullptr;
  int64_t num_sorted = 0;
  int32_t unit_size = 1;
  int32_t top_k = 1;
  bool input_per_pair = false;
  bool rows_stay_sorted = false;  ///< a pair in sorted row r is input and output row r

  const float* channel_scale = nullptr;  ///< [cols], one per expert when sorted, or null
  int64_t channel_scale_stride = 0;      ///< floats from one expert to the next

  Format format = Format::kFp8E4m3;
  ScaleBlock scale_block{};
  ScaleRounding rounding = ScaleRounding::kUp;
  bool power_of_two_scales = false;
  float global_scale = 1.0f;
  void* values = nullptr;
  int64_t value_row_bytes = 0;
  void* scales = nullptr;  ///< [rows][groups]
  DataType scale_type = DataType::kF32;
};
void quantize(const QuantizeJob& job, Stream stream);

}  // namespace switchyard::cuda
