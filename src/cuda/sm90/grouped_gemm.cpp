#include "cuda/sm90/grouped_gemm.h"

#include <algorithm>
#include <limits>

#include "core/grouped_tile_scheduler.h"
#include "cuda/sm90/down_sum_kernels.h"
#include "cuda/sm90/grouped_gemm_kernels.h"
#include "cuda/sm90/tensor_map.h"
#include "switchyard/error.h"

namespace switchyard::cuda::sm90 {
namespace {

GroupedGemmVariantList variants_of(Format weights, Scaling scaling) {
  if (weights == Format::kBf16) return bf16_variants();
  if (weights == Format::kInt8) return int8_variants();
  return scaling == Scaling::kBlock ? fp8_block_variants() : fp8_outer_variants();
}

CUtensorMap row_map(const GroupedGemmJob& job) {
  const int bytes = element_bits(job.input.format) / 8;
  return tensor_map(TensorMap2d{.data = job.input.values,
                                .rows = job.num_input_rows,
                                .cols = job.weights.num_cols,
                                .row_bytes = job.input.row_bytes,
                                .element_bytes = bytes,
                                .box_rows = kGemmWaveRows,
                                .box_cols = kGemmBlockBytes / bytes});
}

}  // namespace

GroupedGemmParams grouped_gemm_params(const GroupedGemmJob& job, const CUtensorMap& weight_map) {
  const int bytes = element_bits(job.weights.rows.format) / 8;
  const bool gated = job.activation != nullptr && job.activation->gated();
  const bool weighted = job.sorted.weights != nullptr;
  GroupedGemmParams p{};
  p.weight_map = weight_map;
  if (job.source == RowSource::kSorted) p.row_map = row_map(job);
  p.sorted = job.sorted;
  p.tile_counter = job.tile_counter;
  p.num_weight_rows = job.weights.num_rows;
  p.num_columns = job.weights.num_rows / (gated ? 2 : 1);
  p.row_bytes_k = job.weights.num_cols * bytes;
  p.num_k_blocks = ceil_div(p.row_bytes_k, kGemmBlockBytes);
  p.input = static_cast<const uint8_t*>(job.input.values);
  p.input_row_bytes = job.input.row_bytes;
  p.source = job.source;
  p.row_scales = static_cast<const float*>(job.input.scales);
  p.row_scale_stride = job.input.num_groups;
  p.row_scale_step = job.input.num_groups > 1 ? 1 : 0;
  if (job.block_scales == nullptr && job.weights.rows.scale_kind == ScaleKind::kF32) {
    p.channel_scales = static_cast<const float*>(job.weights.rows.scales);
  }
  p.block_scales = job.block_scales;
  p.bias = job.weights.bias;
  if (job.activation != nullptr) {
    p.activation_spec = *job.activation;
    p.curve = curve_of(*job.activation);
    p.square = !gated;
  }
  p.weight_before_bias = weighted && job.weight_before_bias;
  p.weight_after = weighted && job.activation == nullptr;
  p.output_per_pair = job.output_per_pair;
  p.output = job.output;
  p.output_stride = job.output_stride;
  p.output_scales = job.output_scales;
  return p;
}

Scaling scaling_of(const StoredRows& input, const WeightRows& weights) {
  if (weights.rows.format == Format::kBf16) return Scaling::kNone;
  return input.group_size != 0 || weights.rows.num_groups > 1 ? Scaling::kBlock : Scaling::kOuter;
}

bool rounds_output(Scaling scaling, const ActivationSpec& activation, int64_t output_columns) {
  return scaling == Scaling::kBlock && activation.gated() && output_columns % 128 == 0;
}

std::vector<GroupedGemmConfig> configs_of(Format weights, Scaling scaling) {
  const GroupedGemmVariantList list = variants_of(weights, scaling);
  std::vector<GroupedGemmConfig> configs;
  for (int i = 0; i < list.count; ++i) configs.push_back(list.variants[i].config);
  return configs;
}

CUtensorMap weight_map(const WeightRows& weights, int64_t num_experts,
                       const GroupedGemmConfig& config) {
  const int bytes = element_bits(weights.rows.format) / 8;
  return tensor_map(TensorMap3d{.slab = {.data = weights.rows.values,
                                         .rows = weights.num_rows,
                                         .cols = weights.num_cols,
                                         .row_bytes = weights.rows.row_bytes,
                                         .element_bytes = bytes,
                                         .box_rows = config.block_n,
                                         .box_cols = kGemmBlockBytes / bytes},
                                .slabs = num_experts,
                                .slab_bytes = weights.expert_bytes});
}

void grouped_gemm(const GroupedGemmJob& job, const GroupedGemmConfig& config,
                  const CUtensorMap& weight_map, int num_sms, Stream stream) {
  if (job.sorted.num_blocks == 0) return;
  const GroupedGemmVariantList list =
      variants_of(job.weights.rows.format, scaling_of(job.input, job.weights));
  const auto* variant = std::find_if(list.variants, list.variants + list.count,
                                     [&](const auto& v) { return v.config == config; });
  if (variant == list.variants + list.count) {
    throw Error(ErrorCode::kInternal, "no prefill kernel was compiled for this config");
  }
  const bool gated = job.activation != nullptr && job.activation->gated();
  const GroupedGemmLauncher launcher = job.source == RowSource::kSorted ? variant->sorted_rows
                                       : gated                          ? variant->gathered_gated
                                                                        : variant->gathered_rows;
  GroupedGemmParams params = grouped_gemm_params(job, weight_map);
  const int columns = ceil_div(job.weights.num_rows, config.block_n);
  params.tiles_per_block = job.sorted.block_rows / config.block_m;
  const int32_t row_blocks = job.sorted.num_blocks * params.tiles_per_block;
  params.unit_columns = unit_columns(row_blocks, columns, params.num_k_blocks, num_sms);
  const int64_t units = int64_t{row_blocks} * ceil_div(columns, params.unit_columns);
  launcher(params, static_cast<int>(std::min<int64_t>(units, num_sms)), stream);
}

}  // namespace switchyard::cuda::sm90
