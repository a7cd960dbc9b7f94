// Stacked tensors [E, ...] as an ExpertSource: one set of views per expert.

#include "core/matrix_slice.h"
#include "layer/validate.h"

namespace switchyard {
namespace {

WeightMatrix matrix(const StackedExperts& s, const TensorView& values, const TensorView& scales,
                    int64_t expert) {
  const int64_t per_word = element_bits(s.format) == 4 ? 2 * element_bytes(values.type) : 1;
  return {.format = s.format,
          .rows = values.extent(1),
          .cols = values.extent(2) * per_word,
          .values = slice(values, expert),
          .scales = slice(scales, expert),
          .scale_block = s.scale_block};
}

ExpertWeights expert_of(const StackedExperts& s, int64_t expert) {
  const WeightMatrix gate_up = matrix(s, s.gate_up, s.gate_up_scales, expert);
  const TensorView bias = slice(s.gate_up_bias, expert);
  ExpertWeights weights{.down = matrix(s, s.down, s.down_scales, expert),
                        .down_bias = slice(s.down_bias, expert)};
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
