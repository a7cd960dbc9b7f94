#include "layer/fuse_shared.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "core/matrix_slice.h"

namespace switchyard {
namespace {

/// "mxfp4 1x32"
std::string stored_as(Format format, const ScaleBlock& block) {
  return fmt::format("{} {}x{}", to_string(format), block.rows, block.cols);
}

/// Everything that decides how a matrix is packed, besides format, blocks and sizes.
bool stored_alike(const WeightMatrix& a, const WeightMatrix& b) {
  const auto alike = [](const TensorView& x, const TensorView& y) {
    return x.empty() == y.empty() && (x.empty() || x.type == y.type);
  };
  return alike(a.scales, b.scales) && alike(a.zero_points, b.zero_points) &&
         alike(a.group_index, b.group_index) && alike(a.smooth_scales, b.smooth_scales) &&
         (a.global_scale == 1.0f) == (b.global_scale == 1.0f);
}
bool stored_alike(const ExpertWeights& a, const ExpertWeights& b) {
  return stored_alike(a.gate, b.gate) && stored_alike(a.up, b.up) && stored_alike(a.down, b.down) &&
         a.gate_bias.empty() == b.gate_bias.empty() && a.up_bias.empty() == b.up_bias.empty() &&
         a.down_bias.empty() == b.down_bias.empty();
}

/// Whether the intermediate of `matrix`, its rows or its columns, may be cut every `size` elements.
bool may_cut(const WeightMatrix& matrix, int64_t size) {
  const ScaleBlock block = matrix.scale_block;
  const int64_t word = element_bits(matrix.format) == 4 ? 2 * element_bytes(matrix.values.type) : 1;
  return matrix.group_index.empty() && size % std::max<int64_t>(block.rows, 1) == 0 &&
         size % std::max<int64_t>(block.cols, 1) == 0 && size % word == 0;
}

/// What only the specs and the shared experts' own matrices decide.
std::string why_not_fused(const LayerSpec& spec, const ExpertWeights& shared) {
  const int64_t inner = spec.intermediate_size;
  const int64_t all = spec.shared.intermediate_size;
  if (spec.shared.sigmoid_gate && spec.weight_position == WeightPosition::kInput) {
    return "a gate weighs their output, routing weights the input";
  }
  if (spec.latent_size > 0) return "the routed experts see a latent vector";
  if (all % inner != 0) {
    return fmt::format("their intermediate size {} is no multiple of {}", all, inner);
  }
  for (const WeightMatrix* m : {&shared.gate, &shared.up, &shared.down}) {
    if (m->empty()) continue;
    if (m->format != spec.weight_format || m->scale_block != spec.weight_scale_block) {
      return fmt::format("their weights are {}, those of the routed experts {}",
                         stored_as(m->format, m->scale_block),
                         stored_as(spec.weight_format, spec.weight_scale_block));
    }
    if (all > inner && !may_cut(*m, inner)) {
      return fmt::format("their scales or groups end elsewhere than every {}", inner);
    }
  }
  const int64_t count = all / inner;
  if (spec.num_experts + count > kMaxExperts || spec.top_k + count > kMaxTopK) {
    return fmt::format("{} more experts are too many", count);
  }
  return {};
}

/// Part `i` of `size` intermediate elements.
ExpertWeights part_of(const ExpertWeights& expert, int64_t i, int64_t size) {
  const int64_t begin = i * size;
  const auto rows = [&](const WeightMatrix& m) {
    return m.empty() ? m : matrix_rows(m, begin, 1, size);
  };
  return {.gate = rows(expert.gate),
          .up = rows(expert.up),
          .down = matrix_cols(expert.down, begin, size),
          .gate_bias = every(expert.gate_bias, begin, 1, size),
          .up_bias = every(expert.up_bias, begin, 1, size),
          .down_bias = i == 0 ? expert.down_bias : TensorView{}};  // it is added once
}

}  // namespace

FusedShared fuse_shared(const LayerSpec& spec, const ExpertSource& routed,
                        const ExpertWeights& shared) {
  FusedShared fused{.spec = spec, .experts = routed, .why_not = why_not_fused(spec, shared)};
  if (!fused.why_not.empty()) return fused;
  const ExpertWeights first = routed.load(0);
  const int64_t num_routed = spec.num_experts;
  const bool alike = stored_alike(first, shared);
  if (!alike) {
    fused.why_not = "their scales, zero points or biases are stored otherwise";
  } else {
    const int64_t count = spec.shared.intermediate_size / spec.intermediate_size;
    fused.spec.num_experts += count;
    fused.spec.top_k += count;
    fused.spec.num_fused_shared = count;
    fused.spec.shared = {};
    fused.experts.num_experts += count;
  }
  fused.experts.load = [first, shared, num_routed, size = spec.intermediate_size,
                        load = routed.load](int64_t e) {
    if (e == 0) return first;
    return e < num_routed ? load(e) : part_of(shared, e - num_routed, size);
  };
  fused.experts.release = [num_routed, release = routed.release](int64_t e) {
    if (release && e < num_routed) release(e);
  };
  return fused;
}

}  // namespace switchyard
