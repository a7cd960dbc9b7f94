#pragma once
// What the oracle's layers share: copies of stored tensors, and a product in double.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/number_formats.h"
#include "switchyard/tensor.h"
#include "switchyard/weights.h"

namespace switchyard::reference {

/// Element `index` of a contiguous tensor.
inline double load(const TensorView& tensor, int64_t index) {
  return static_cast<double>(load_as_f32(tensor.data, tensor.type, index));
}
inline void store(const TensorView& tensor, int64_t index, double value) {
  store_f32(tensor.data, tensor.type, index, static_cast<float>(value));
}

/// Tokens to compute: all, or as many as num_tokens[0] says.
inline int64_t active_tokens(const TensorView& num_tokens, int64_t all) {
  return num_tokens.empty() ? all : num_tokens.as<const int32_t>()[0];
}

/// Contiguous copies of the stored bytes; the views that create was given die with it.
class StoredTensors {
 public:
  TensorView keep(const TensorView& view);
  WeightMatrix keep(const WeightMatrix& matrix);
  int64_t bytes() const { return bytes_; }

 private:
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
  int64_t bytes_ = 0;
};

/// output[r, n] = input[r] . matrix[n] + bias[n]. `decoded` holds one row [cols]: f32 rounds an
/// exact product of value and scale once, 3e-8 of it.
void multiply(const WeightMatrix& matrix, const TensorView& bias, const double* input,
              int64_t num_rows, float* decoded, double* output);

}  // namespace switchyard::reference
