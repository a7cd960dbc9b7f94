#include "cli/layer_cost.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace switchyard::cli {
namespace {

int64_t bytes_of(const TensorView& view) {
  return view.empty() ? 0 : view.num_elements() * element_bytes(view.type);
}

/// Gate and up that share one block's scales count them twice: below 1 % of any format.
int64_t bytes_of(const WeightMatrix& matrix) {
  return bytes_of(matrix.values) + bytes_of(matrix.scales) + bytes_of(matrix.zero_points) +
         bytes_of(matrix.smooth_scales);
}

}  // namespace

double expected_distinct_experts(const LayerSpec& spec, int64_t num_tokens) {
  if (num_tokens == 0) return 0;
  const double routed = static_cast<double>(spec.num_routed());
  const double missed = 1.0 - static_cast<double>(spec.routed_top_k()) / routed;
  return routed * (1.0 - std::pow(missed, static_cast<double>(num_tokens))) +
         static_cast<double>(spec.num_fused_shared);
}

double expert_flops(const LayerSpec& spec, int64_t num_tokens) {
  const double hidden = static_cast<double>(spec.hidden_size);
  const double width = static_cast<double>(spec.expert_width());
  const double matrices = spec.activation.gated() ? 3 : 2;
  double per_token = static_cast<double>(spec.top_k) * matrices * width *
                     static_cast<double>(spec.intermediate_size);
  per_token += matrices * hidden * static_cast<double>(spec.shared.intermediate_size);
  if (spec.latent_size > 0) per_token += 2 * hidden * width;
  return 2 * per_token * static_cast<double>(num_tokens);
}

double router_flops(const LayerSpec& spec, int64_t num_tokens) {
  return 2 * static_cast<double>(num_tokens) * static_cast<double>(spec.hidden_size) *
         static_cast<double>(spec.num_routed());
}

int64_t stored_bytes(const ExpertWeights& expert) {
  return bytes_of(expert.gate) + bytes_of(expert.up) + bytes_of(expert.down) +
         bytes_of(expert.gate_bias) + bytes_of(expert.up_bias) + bytes_of(expert.down_bias);
}

int64_t stored_bytes_of_shared(const Weights& weights) {
  return stored_bytes(weights.shared) + bytes_of(weights.shared_gate) +
         bytes_of(weights.latent_down) + bytes_of(weights.latent_norm) +
         bytes_of(weights.latent_up);
}

Peak arithmetic_peak(const LayerSpec& spec, const MachineLimits& limits) {
  if (spec.weight_format == Format::kF32) return {limits.f32_gflops, "f32"};
  switch (activations_on(limits.backend, spec)) {
    case ActivationFormat::kInt8Block32:
    case ActivationFormat::kInt8PerToken:
    case ActivationFormat::kInt8PerSlot:
      // Codes meet only codes in the dot product: bf16 and FP8 weights are decoded to floats.
      if (element_bits(spec.weight_format) == 4 || spec.weight_format == Format::kInt8) {
        return {limits.int8_gops, "int8"};
      }
      break;
    case ActivationFormat::kAuto:
    case ActivationFormat::kNone: break;
    default:
      if (limits.backend == BackendKind::kCuda && element_bits(spec.weight_format) <= 8) {
        return {limits.fp8_gflops, "fp8"};
      }
  }
  return limits.bf16_gflops > limits.f32_gflops ? Peak{limits.bf16_gflops, "bf16"}
                                                : Peak{limits.f32_gflops, "f32"};
}

Floor time_floor(double bytes, double flops, const LayerSpec& spec, const MachineLimits& limits) {
  const double memory_us = bytes / (limits.read_gbps * 1e3);
  const double arithmetic_us = flops / (arithmetic_peak(spec, limits).gflops * 1e3);
  return {.us = std::max(memory_us, arithmetic_us), .memory_bound = memory_us >= arithmetic_us};
}

TensorParallelSplit tensor_parallel_split(const LayerSpec& spec, int64_t ranks) {
  const ScaleBlock block = spec.weight_scale_block;
  // I is the rows of gate and up and the columns of down; 0 means that a scale spans all of it.
  const int64_t rows = std::max<int64_t>(block.rows, 1);
  const int64_t cols = std::max<int64_t>(block.cols, element_bits(spec.weight_format) == 4 ? 2 : 1);
  TensorParallelSplit split{.granularity = std::lcm(rows, cols)};
  split.shard = (spec.intermediate_size + ranks - 1) / ranks;
  split.padded_shard =
      (split.shard + split.granularity - 1) / split.granularity * split.granularity;
  return split;
}

}  // namespace switchyard::cli
