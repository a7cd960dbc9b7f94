// Stacked tensors [E, ...] as an ExpertSource: one set of views per expert.

#include "core/matrix_slice.h"
#include "core/number_formats.h"
#include "layer/validate.h"

namespace switchyard {
namespace {

/// What belongs to one of the two stacked matrices.
struct Stack {
  TensorView values, scales, zero_points, smooth_scales;
};

WeightMatrix matrix(const StackedExperts& s, const Stack& stack, float global_scale,
                    int64_t expert) {
  const TensorView& values = stack.values;
  const int64_t per_word = element_bits(s.format) == 4 ? 2 * element_bytes(values.type) : 1;
  return {.format = s.format,
          .rows = values.extent(1),
          .cols = values.extent(2) * per_word,
          .values = slice(values, expert),
          .scales = slice(stack.scales, expert),
          .scale_block = s.scale_block,
          .global_scale = global_scale,
          .zero_points = slice(stack.zero_points, expert),
          .smooth_scales = slice(stack.smooth_scales, expert)};
}

/// Of an [E] or [E, 2] view; `half` is ignored by the former.
float global_scale(const TensorView& scales, int64_t expert, int64_t half) {
  if (scales.empty()) return 1.0f;
  const int64_t column = scales.rank == 2 ? half * scales.stride(1) : 0;
  return load_as_f32(scales.data, DataType::kF32, expert * scales.stride(0) + column);
}

ExpertWeights expert_of(const StackedExperts& s, int64_t expert) {
  const WeightMatrix gate_up =
      matrix(s, {s.gate_up, s.gate_up_scales, s.gate_up_zero_points, s.gate_up_smooth_scales},
             global_scale(s.gate_up_global_scales, expert, 0), expert);
  const WeightMatrix down =
      matrix(s, {s.down, s.down_scales, s.down_zero_points, s.down_smooth_scales},
             global_scale(s.down_global_scales, expert, 0), expert);
  const TensorView bias = slice(s.gate_up_bias, expert);
  ExpertWeights weights{.down = down, .down_bias = slice(s.down_bias, expert)};
  if (!s.gated) {
    weights.up = gate_up;
    weights.up_bias = bias;
    return weights;
  }
  const int64_t inner = gate_up.rows / 2;
  const bool interleaved = s.order == GateUpOrder::kInterleaved;
  const int64_t up_begin = interleaved ? 1 : inner;
  const int64_t step = interleaved ? 2 : 1;
  weights.gate = matrix_rows(gate_up, 0, step, inner);
  weights.up = matrix_rows(gate_up, up_begin, step, inner);
  weights.up.global_scale = global_scale(s.gate_up_global_scales, expert, 1);
  weights.gate_bias = every(bias, 0, step, inner);
  weights.up_bias = every(bias, up_begin, step, inner);
  return weights;
}

}  // namespace

ExpertSource expert_source(const StackedExperts& stacked) {
  validate_stacked(stacked);
  return {.num_experts = stacked.gate_up.extent(0),
          .load = [stacked](int64_t expert) { return expert_of(stacked, expert); }};
}

}  // namespace switchyard
