#pragma once
// MX rows for kernels that know one scale per row: codes move to E4M3 numbers relative to the row's
// largest scale. MXFP4 keeps every value when the scales of a row lie within 2^14 of each other;
// what does not fit E4M3 rounds by at most 2^-10 of its unit, 2^-18 of the row's largest number.

#include "cuda/token_count.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda::sm90 {

struct ReencodeJob {
  Format format = Format::kMxfp4;  ///< or kMxfp8
  const uint8_t* codes = nullptr;
  int64_t code_row_bytes = 0;
  const uint8_t* scales = nullptr;  ///< E8M0 [rows][groups of 32]
  int64_t cols = 0;                 ///< a multiple of 16
  TokenCount rows{};
  uint8_t* values = nullptr;  ///< E4M3
  int64_t value_row_bytes = 0;
  float* row_scales = nullptr;
};
void reencode_rows(const ReencodeJob& job, Stream stream);

/// The same rows as bf16 numbers with their scales in them, which is exact from 2^-126 on, for
/// weights that are bf16 where they are multiplied. `values` are bf16; there are no row_scales.
void expand_rows(const ReencodeJob& job, Stream stream);

}  // namespace switchyard::cuda::sm90
