#include "reference/matrix.h"

#include <cstring>

#include "core/weight_matrix.h"

namespace switchyard::reference {

TensorView StoredTensors::keep(const TensorView& view) {
  if (view.empty()) return {};
  const int64_t element = element_bytes(view.type);
  const int64_t rows = view.rank == 2 ? view.extent(0) : 1;
  const int64_t cols = view.extent(view.rank - 1);
  const int64_t bytes = rows * cols * element;
  blocks_.push_back(std::make_unique<std::byte[]>(static_cast<size_t>(bytes)));
  bytes_ += bytes;
  std::byte* to = blocks_.back().get();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c, to += element) {
      const int64_t at = (view.rank == 2 ? r * view.stride(0) : 0) + c * view.stride(view.rank - 1);
      std::memcpy(to, view.as<const std::byte>() + at * element, static_cast<size_t>(element));
    }
  }
  std::byte* copy = blocks_.back().get();
  return view.rank == 2 ? TensorView::contiguous(copy, view.type, {rows, cols})
                        : TensorView::contiguous(copy, view.type, {cols});
}

WeightMatrix StoredTensors::keep(const WeightMatrix& matrix) {
  WeightMatrix copy = matrix;
  for (TensorView* view :
       {&copy.values, &copy.scales, &copy.zero_points, &copy.group_index, &copy.smooth_scales})
    *view = keep(*view);
  return copy;
}

void multiply(const WeightMatrix& matrix, const TensorView& bias, const double* input,
              int64_t num_rows, float* decoded, double* output) {
  for (int64_t n = 0; n < matrix.rows; ++n) {
    decode_row(matrix, n, decoded);
    for (int64_t r = 0; r < num_rows; ++r) {
      double sum = bias.empty() ? 0.0 : load(bias, n);
      for (int64_t k = 0; k < matrix.cols; ++k)
        sum += static_cast<double>(decoded[k]) * input[r * matrix.cols + k];
      output[r * matrix.rows + n] = sum;
    }
  }
}

}  // namespace switchyard::reference
