#pragma once
// 4-bit and MXFP8 weights from rows to fragment order, on the GPU.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/fragment_layout.h"

namespace switchyard::cuda {

/// What packing saw of MX scales: how many powers of two lie between the largest and the smallest
/// scale of a row, blocks of zeros left out.
struct ScaleSpread {
  static constexpr int kBins = 16;
  uint32_t rows[kBins];  ///< rows with a spread of 0, 1, ...; the last: of 15 or more
  uint32_t wide;         ///< rows that spread too far for their order's converter; INT4: groups
                         ///< with a zero point above kMostInt4Fp8Zero (kFp8)
  uint32_t not_numbers;  ///< groups whose scale or some E4M3 code is NaN

  /// Whether some row spreads over more than `steps`.
  bool deeper_than(int steps) const {
    for (int spread = steps + 1; spread < kBins; ++spread) {
      if (rows[spread] > 0) return true;
    }
    return false;
  }
};

/// One matrix (or gate/up pair), staged on the device as rows.
struct FragmentPackJob {
  FragmentLayout layout{};
  int32_t num_rows = 0;
  int32_t num_cols = 0;
  const uint8_t* codes = nullptr;  ///< [rows][row_bytes], zero from num_cols on
  int64_t row_bytes = 0;
  const uint8_t* scales = nullptr;  ///< [rows][num_groups], as stored; INT4: bf16, int4_factor
  int32_t num_groups = 0;
  int32_t group_size = 0;                ///< 0: one group
  const float* global_scales = nullptr;  ///< [halves], row r has that of half r % halves; null: 1
  int32_t halves = 1;
  uint8_t* blocks = nullptr;
  float* row_scales = nullptr;  ///< [rows]
  ScaleSpread* spread = nullptr;
};
void pack_fragments(const FragmentPackJob& job, cudaStream_t stream);

}  // namespace switchyard::cuda
