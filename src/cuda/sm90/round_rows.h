#pragma once
// Rows rounded to E4M3 or INT8 for a decode GEMM, which reads them as its tokens.

#include <cstdint>

#include "core/math.h"
#include "cuda/token_count.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda::sm90 {

struct RoundedRows {
  uint8_t* codes = nullptr;  ///< [rows], or null: no rounding
  int64_t row_bytes = 0;
  float* scales = nullptr;  ///< [rows][groups]
  int32_t num_columns = 0;
  int32_t group_columns = 0;  ///< that share a scale; 0: the whole row
  Format format = Format::kFp8E4m3;

  SWITCHYARD_HOST_DEVICE int32_t columns_of_group() const {
    return group_columns == 0 ? num_columns : group_columns;
  }
  SWITCHYARD_HOST_DEVICE int32_t groups() const {
    return ceil_div(num_columns, columns_of_group());
  }
};

/// The rows of one tensor, rounded by blocks of threads beside other work or alone.
struct RoundJob {
  RoundedRows to{};
  const void* from = nullptr;  ///< [rows][num_columns]; null: no job
  DataType type = DataType::kBf16;
  TokenCount rows{};

  /// Blocks of so many threads: one per row where the row has one scale, else a warp per group.
  int64_t blocks(int64_t threads) const {
    if (from == nullptr) return 0;
    if (to.group_columns == 0) return rows.limit;
    return ceil_div<int64_t>(rows.limit * to.groups() * 32, threads);
  }
};

}  // namespace switchyard::cuda::sm90
