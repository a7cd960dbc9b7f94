#pragma once
// Rows of f32, f16 or bf16 tensors in and out of f32 buffers, and their distribution over threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/math.h"
#include "core/number_formats.h"
#include "cpu/thread_pool.h"
#include "switchyard/tensor.h"

namespace switchyard::cpu {

/// out[i] = element first + i of a contiguous f32, f16 or bf16 tensor.
inline void load_row(const TensorView& tensor, int64_t first, int64_t n, float* out) {
  if (tensor.type == DataType::kF32) {
    std::memcpy(out, tensor.as<const float>() + first, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const uint16_t* in = tensor.as<const uint16_t>() + first;
  if (tensor.type == DataType::kBf16) {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(in[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(in[i]);
  }
}

/// Element first + i of a contiguous f32, f16 or bf16 tensor = row[i], rounded to nearest even.
inline void store_row(const TensorView& tensor, int64_t first, int64_t n, const float* row) {
  if (tensor.type == DataType::kF32) {
    std::memcpy(tensor.as<float>() + first, row, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* out = tensor.as<uint16_t>() + first;
  if (tensor.type == DataType::kBf16) {
    for (int64_t i = 0; i < n; ++i) out[i] = f32_to_bf16(row[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = f32_to_f16(row[i]);
  }
}

/// Columns that a step works on at a time: a few f32 buffers of it stay in the L1 cache.
inline constexpr int64_t kTileColumns = 1024;

/// The first num_tokens[0] rows count, all when it is not given.
inline int64_t rows_to_compute(const TensorView& num_tokens, int64_t num_rows) {
  if (num_tokens.empty()) return num_rows;
  return std::clamp<int64_t>(num_tokens.as<const int32_t>()[0], 0, num_rows);
}

/// body(begin, end) over [0, num_rows). A piece has at least 8192
/// elements: about 10 us of work, what waking a thread costs.
template <class Body>
void for_row_ranges(Executor& executor, int64_t num_rows, int64_t elements_per_row, Body&& body) {
  constexpr int64_t kMinElements = 8192;
  const int64_t quarter_share = num_rows / (int64_t{4} * executor.num_threads());
  const int64_t min_rows = kMinElements / std::max<int64_t>(elements_per_row, 1);
  parallel_for(executor, num_rows, std::max(quarter_share, min_rows), std::forward<Body>(body));
}

/// body(row, column, n) over tiles of n <= kTileColumns columns of [num_rows, num_columns];
/// elements_per_column is what a column costs.
template <class Body>
void for_tiles(Executor& executor, int64_t num_rows, int64_t num_columns,
               int64_t elements_per_column, Body&& body) {
  const int64_t tiles_per_row = ceil_div(num_columns, kTileColumns);
  for_row_ranges(executor, num_rows * tiles_per_row, kTileColumns * elements_per_column,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t tile = begin; tile < end; ++tile) {
                     const int64_t column = tile % tiles_per_row * kTileColumns;
                     body(tile / tiles_per_row, column,
                          std::min(kTileColumns, num_columns - column));
                   }
                 });
}

}  // namespace switchyard::cpu
