// ops::dequantize: a stored matrix as f32.

#include "core/weight_matrix.h"
#include "layer/validate.h"

namespace switchyard::ops {

void dequantize(const WeightMatrix& matrix, TensorView output) {
  validate_dequantize(matrix, output);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    decode_row(matrix, row, output.as<float>() + row * matrix.cols);
  }
}

}  // namespace switchyard::ops
