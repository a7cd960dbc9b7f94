#pragma once
// What meets what in a tuned GEMM: weights, their scales, and the rows of tokens.

#include <fmt/format.h>

#include <string>

#include "support/random_weights.h"
#include "switchyard/layer_spec.h"

namespace switchyard::test {

struct Operands {
  Format weights;
  ScaleBlock block;
  ActivationFormat activations;
  bool zero_points = false;
  DataType int4_scales = DataType::kBf16;
};

inline LayerSpec spec_of(const Operands& operands, int64_t experts, int64_t top_k, int64_t hidden,
                         int64_t inner) {
  return {.num_experts = experts,
          .top_k = top_k,
          .hidden_size = hidden,
          .intermediate_size = inner,
          .weight_format = operands.weights,
          .weight_scale_block = operands.block,
          .activation_format = operands.activations};
}

/// Stored as the kernels want it.
inline MatrixOptions matrix_of(const Operands& operands) {
  MatrixOptions options = usual_matrix(operands.weights);
  options.scale_block = operands.block;
  options.smooth_scales = operands.activations == ActivationFormat::kInt8PerSlot;
  if (operands.weights == Format::kInt4) {
    options.scale_type = operands.int4_scales;
    options.zero_points = operands.zero_points;
  }
  return options;
}

/// The name of a test of these operands.
inline std::string name_of(const Operands& operands) {
  const auto [rows, cols] = operands.block;
  return fmt::format("{}{}{}{}_by_{}", to_string(operands.weights),
                     rows == 0 && cols == 0 ? "" : fmt::format("_{}x{}", rows, cols),
                     operands.zero_points ? "_zeros" : "",
                     operands.int4_scales == DataType::kF16 ? "_f16_scales" : "",
                     to_string(operands.activations));
}

/// For SCOPED_TRACE.
inline std::string describe(const LayerSpec& spec, int64_t tokens) {
  return fmt::format("{} {{{},{}}} x {}, {}, T {} E {} K {} H {} I {}",
                     to_string(spec.weight_format), spec.weight_scale_block.rows,
                     spec.weight_scale_block.cols, to_string(spec.activation_format),
                     to_string(spec.activation.kind), tokens, spec.num_experts, spec.top_k,
                     spec.hidden_size, spec.intermediate_size);
}

}  // namespace switchyard::test
