// Comparison with the reference, and the error that the formats allow. docs/numerics.md, "Error
// bounds", derives every figure below.

#include "switchyard/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/activation_format.h"
#include "core/number_formats.h"
#include "layer/validate.h"

namespace switchyard {
namespace {

double load(const TensorView& tensor, int64_t row, int64_t column) {
  const int64_t at = row * tensor.stride(0) + column * tensor.stride(1);
  if (tensor.type == DataType::kF64) return tensor.as<double>()[at];
  return static_cast<double>(load_as_f32(tensor.data, tensor.type, at));
}

/// rms of a uniform rounding error of one step: step / sqrt(12).
constexpr double kUniformRms = 0.28867513459481287;

/// Step of a float type relative to the value, at the worst mantissa (1.0).
double relative_step(DataType type) {
  switch (type) {
    case DataType::kBf16: return 0x1p-7;
    case DataType::kF16: return 0x1p-10;
    default: return 0x1p-23;
  }
}

/// Largest magnitude of a block over its rms: sqrt(n) for a lone outlier; in long blocks 3 times
/// the peak of normal data, which covers the product of two normals behind a gated activation.
double peak(double block) {
  return std::min(std::sqrt(block), 3.0 * std::sqrt(2.0 * std::log(std::max(block, 2.0))));
}

/// rms error of quantised activations over their rms.
double quantisation_error(ActivationFormat activations, int64_t columns) {
  const auto [format, scale_block] = activation_storage(activations);
  const int64_t block = scale_block.cols == 0 ? columns : std::min(scale_block.cols, columns);
  double relative = 0;  // step relative to the value
  double absolute = 0;  // step relative to the block's largest value
  switch (format) {
    case Format::kInt8: absolute = 1.0 / 127.0; break;
    case Format::kFp8E4m3:
    case Format::kMxfp8: relative = 0x1p-3; break;
    case Format::kMxfp4:
      relative = 0.5;
      absolute = 1.0 / 6.0;  // half a unit of a scale that is at most amax / 3
      break;
    default: return 0;
  }
  return kUniformRms * std::hypot(relative, absolute * peak(static_cast<double>(block)));
}

}  // namespace

Comparison compare(const TensorView& output, const TensorView& reference) {
  validate_compare(output, reference);
  Comparison result;
  double error_squares = 0;
  double reference_squares = 0;
  for (int64_t row = 0; row < reference.extent(0); ++row) {
    double row_squares = 0;
    double row_worst = 0;
    int64_t row_worst_column = -1;
    for (int64_t column = 0; column < reference.extent(1); ++column) {
      const double expected = load(reference, row, column);
      const double error = load(output, row, column) - expected;
      if (!std::isfinite(expected)) continue;
      if (!std::isfinite(error)) {
        if (result.num_nan++ == 0) {
          result.worst_row = row;
          result.worst_column = column;
        }
        continue;
      }
      row_squares += expected * expected;
      error_squares += error * error;
      if (std::abs(error) > row_worst) {
        row_worst = std::abs(error);
        row_worst_column = column;
      }
    }
    reference_squares += row_squares;
    const double row_rms = std::sqrt(row_squares / static_cast<double>(reference.extent(1)));
    if (row_worst == 0) continue;
    // A row that must be zero has no scale to compare with: any error in it is infinite.
    const double worst =
        row_rms > 0 ? row_worst / row_rms : std::numeric_limits<double>::infinity();
    if (worst <= result.worst_error) continue;
    result.worst_error = worst;
    if (result.num_nan == 0) {
      result.worst_row = row;
      result.worst_column = row_worst_column;
    }
  }
  if (error_squares > 0) {
    result.rms_error = reference_squares > 0 ? std::sqrt(error_squares / reference_squares)
                                             : std::numeric_limits<double>::infinity();
  }
  return result;
}

ErrorBound error_bound(const LayerSpec& spec, BackendKind backend, DataType output_type) {
  const ActivationFormat activations = resolved_activation_format(spec, backend);
  const int64_t width = std::max(spec.expert_width(), spec.hidden_size);
  const int64_t inner = std::max(spec.intermediate_size, spec.shared.intermediate_size);

  // A relative error d of the input reaches g and u independently, and act(g, u) with
  // sqrt(E[(act_g g)^2 + (act_u u)^2] / E[act^2]) <= 1.6 times its size (square: 2 / sqrt(3)).
  const double gain = spec.activation.gated() ? 1.6 : 1.2;
  const double weights = rounds_weights(spec, backend) ? kUniformRms * 0x1p-3 : 0.0;
  const double input = gain * std::hypot(quantisation_error(activations, width), weights);
  const double intermediate = std::hypot(quantisation_error(activations, inner), weights);
  // The GPU keeps the intermediate and the rows that combine sums in bf16, and the latent vectors
  // before and after the experts; the others all in f32.
  const double latent = spec.latent_size > 0 ? gain * gain + 1.0 : 0.0;
  const double storage =
      backend == BackendKind::kCuda ? std::sqrt(2.0 + latent) * kUniformRms * 0x1p-7 : 0.0;
  // f32: sums of n terms, a random walk of half-ulp steps, three GEMMs deep; exp and its like
  // within 4 ulp. The reference rounds decoded weights and stored vectors to f32, once each.
  const double longest = static_cast<double>(std::max(width, inner));
  const double arithmetic =
      backend == BackendKind::kReference ? 0x1p-24 : 0x1p-24 * std::sqrt(3.0 * longest + 16.0);
  const double output = kUniformRms * relative_step(output_type);

  // Few elements fluctuate around an rms: the error of one may be sqrt(3) times that of a uniform
  // one, and a narrow row may be small by chance.
  const double columns = static_cast<double>(spec.hidden_size);
  const double before_output =
      std::sqrt((1.0 + 4.0 / columns) * (input * input + intermediate * intermediate +
                                         storage * storage + arithmetic * arithmetic));
  ErrorBound bound;
  bound.rms = std::hypot(before_output, std::sqrt(1.0 + 4.0 / columns) * output);
  // Errors are near normal with a per-token size: 6 sigma, and a token twice as bad as the mean.
  // The output's own rounding is half a step of the row's largest element, up to 8 times its rms.
  bound.worst =
      12.0 * (1.0 + 16.0 / columns) * before_output + 8.0 * 0.5 * relative_step(output_type);
  bound.derivation = fmt::format(
      "input {} {:.1e}, intermediate {:.1e}, bf16 storage {:.1e}, f32 arithmetic {:.1e}, {} output "
      "{:.1e}",
      to_string(activations), input, intermediate, storage, arithmetic, to_string(output_type),
      output);
  return bound;
}

}  // namespace switchyard
