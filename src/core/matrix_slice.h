#pragma once
// Parts of stored matrices as matrices: no byte moves.

#include "core/math.h"
#include "switchyard/weights.h"

namespace switchyard {

/// Rows `begin + i * step`, i < rows. Scales stay whole and are found through scale_row_begin/step,
/// because a block of rows may be cut.
inline WeightMatrix matrix_rows(const WeightMatrix& matrix, int64_t begin, int64_t step,
                                int64_t rows) {
  const auto cut = [=](TensorView& view) {
    if (view.empty()) return;
    view.data = view.as<char>() + begin * view.stride(0) * element_bytes(view.type);
    view.shape[0] = rows;
    view.strides[0] *= step;
  };
  WeightMatrix part = matrix;
  part.rows = rows;
  cut(part.values);
  cut(part.zero_points);
  part.scale_row_begin += begin * matrix.scale_row_step;
  part.scale_row_step *= step;
  return part;
}

/// Columns begin ... begin + cols - 1, cut where a scale's block, a word of packed values and, with
/// kInt4, a group end. Not of a matrix with a group index.
inline WeightMatrix matrix_cols(const WeightMatrix& matrix, int64_t begin, int64_t cols) {
  const auto cut = [](TensorView& view, size_t dimension, int64_t first, int64_t count) {
    if (view.empty()) return;
    view.data = view.as<char>() + first * view.strides[dimension] * element_bytes(view.type);
    view.shape[dimension] = count;
  };
  const bool nibbles = element_bits(matrix.format) == 4;
  const int64_t per_word = nibbles ? 2 * element_bytes(matrix.values.type) : 1;
  WeightMatrix part = matrix;
  part.cols = cols;
  cut(part.values, 1, begin / per_word, ceil_div(cols, per_word));
  const int64_t group = matrix.scale_block.cols;
  if (group > 0) {
    cut(part.scales, 1, begin / group, ceil_div(cols, group));
    cut(part.zero_points, 1, begin / group, ceil_div(cols, group));
  }
  cut(part.smooth_scales, 0, begin, cols);
  return part;
}

/// Index `i` of the leading dimension of a view.
inline TensorView slice(const TensorView& view, int64_t i) {
  if (view.empty()) return {};
  TensorView part = view;
  part.data = view.as<char>() + i * view.stride(0) * element_bytes(view.type);
  part.rank = view.rank - 1;
  for (size_t d = 0; d + 1 < TensorView::kMaxRank; ++d) {
    part.shape[d] = view.shape[d + 1];
    part.strides[d] = view.strides[d + 1];
  }
  return part;
}

/// Elements `begin + i * step`, i < size, of a vector.
inline TensorView every(const TensorView& vector, int64_t begin, int64_t step, int64_t size) {
  if (vector.empty()) return {};
  TensorView part = vector;
  part.data = vector.as<char>() + begin * vector.stride(0) * element_bytes(vector.type);
  part.shape[0] = size;
  part.strides[0] *= step;
  return part;
}

}  // namespace switchyard
