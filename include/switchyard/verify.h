#pragma once
// Comparison of a backend's output with the reference, and the bound that the formats allow.

#include <cstdint>
#include <string>

#include "switchyard/export.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// What an output may differ by from the exact result on the same stored weights, as fractions of
/// the rms of the reference row. Derived in docs/numerics.md.
struct ErrorBound {
  double rms = 0;            ///< of the rms error over the whole output
  double worst = 0;          ///< of the worst element
  std::string derivation{};  ///< one line: which term contributes what
};
SWITCHYARD_EXPORT ErrorBound error_bound(const LayerSpec& spec, BackendKind backend,
                                         DataType output_type);

struct Comparison {
  double rms_error = 0;    ///< rms(output - reference) / rms(reference)
  double worst_error = 0;  ///< largest |output - reference| / rms of its reference row
  int64_t worst_row = -1;  ///< token
  int64_t worst_column = -1;
  int64_t num_nan = 0;  ///< NaN or infinite where the reference is finite
  bool within(const ErrorBound& bound) const {
    return num_nan == 0 && rms_error <= bound.rms && worst_error <= bound.worst;
  }
};
/// output and reference [T, C], f32, bf16, f16 or f64.
SWITCHYARD_EXPORT Comparison compare(const TensorView& output, const TensorView& reference);

}  // namespace switchyard
