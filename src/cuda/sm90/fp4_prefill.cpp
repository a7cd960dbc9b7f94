#include "cuda/sm90/fp4_prefill.h"

#include <algorithm>

#include "core/grouped_tile_scheduler.h"
#include "cuda/sm90/fp4_prefill_kernels.h"
#include "cuda/sm90/tensor_map.h"
#include "switchyard/error.h"

namespace switchyard::cuda::sm90 {
namespace {

Fp4PrefillVariantList int4_variants(FragmentOrder order, bool factors, bool short_groups) {
  switch (order) {
    case FragmentOrder::kFp8:
      return factors        ? fp4_prefill_int4_zeros_fp8_g64()
             : short_groups ? fp4_prefill_int4_fp8_g32()
                            : fp4_prefill_int4_fp8_g64();
    case FragmentOrder::kInt8:
      return factors        ? fp4_prefill_int4_zeros_int8_g64()
             : short_groups ? fp4_prefill_int4_int8_g32()
                            : fp4_prefill_int4_int8_g64();
    default: break;
  }
  if (factors) return short_groups ? fp4_prefill_int4_zeros_g32() : fp4_prefill_int4_zeros_g64();
  return short_groups ? fp4_prefill_int4_g32() : fp4_prefill_int4_g64();
}

Fp4PrefillVariantList variants_of(const FragmentLayout& weights, bool block_scales) {
  switch (weights.format) {
    case Format::kInt4:
      return int4_variants(weights.order, weights.scale_bytes == 4, weights.scale_cols == 32);
    case Format::kNvfp4:
      return weights.order == FragmentOrder::kFp8 ? fp4_prefill_nvfp4_fp8() : fp4_prefill_nvfp4();
    case Format::kMxfp8: return fp4_prefill_mxfp8();
    default: break;
  }
  if (weights.order == FragmentOrder::kBf16) return fp4_prefill_bf16();
  return block_scales ? fp4_prefill_fp8_block128() : fp4_prefill_fp8();
}

Fp4PrefillParams params_of(const GroupedGemmJob& job, int tile_rows) {
  const WeightRows& w = job.weights;
  const int bytes = element_bits(job.input.format) / 8;
  const bool gated = job.activation != nullptr && job.activation->gated();
  const bool weighted = job.sorted.weights != nullptr;
  Fp4PrefillParams p{};
  if (job.source == RowSource::kSorted) {
    p.row_map = tensor_map(TensorMap2d{.data = job.input.values,
                                       .rows = job.num_input_rows,
                                       .cols = w.num_cols,
                                       .row_bytes = job.input.row_bytes,
                                       .element_bytes = bytes,
                                       .box_rows = tile_rows,
                                       .box_cols = kGemmBlockBytes / bytes});
  }
  p.sorted = job.sorted;
  p.tile_counter = job.tile_counter;
  p.weights = static_cast<const uint8_t*>(w.rows.values);
  p.deep = job.deep_scales;
  p.expert_bytes = w.expert_bytes;
  p.row_block_bytes = w.fragments.row_block_bytes();
  p.num_row_blocks = w.fragments.row_blocks;
  p.num_col_blocks = w.fragments.col_blocks;
  p.num_weight_rows = w.num_rows;
  p.num_columns = w.num_rows / (gated ? 2 : 1);
  p.row_bytes_k = w.num_cols * bytes;
  p.num_k_blocks = ceil_div(p.row_bytes_k, kGemmBlockBytes);
  p.weight_row_scales = w.row_scales;
  p.bias = w.bias;
  p.input = static_cast<const uint8_t*>(job.input.values);
  p.input_row_bytes = job.input.row_bytes;
  p.source = job.source;
  p.row_scales = static_cast<const float*>(job.input.scales);
  p.row_scale_stride = job.input.num_groups;
  if (job.activation != nullptr) {
    p.activation_spec = *job.activation;
    p.curve = curve_of(*job.activation);
    p.square = !gated;
  }
  p.weight_before_bias = weighted && job.weight_before_bias;
  p.weight_after = weighted && job.activation == nullptr;
  p.output_per_pair = job.output_per_pair;
  p.output = static_cast<uint16_t*>(job.output);
  p.output_stride = job.output_stride;
  return p;
}

}  // namespace

std::vector<GroupedGemmConfig> fp4_prefill_configs(const FragmentLayout& weights,
                                                   bool block_scales) {
  const Fp4PrefillVariantList list = variants_of(weights, block_scales);
  std::vector<GroupedGemmConfig> configs;
  for (int i = 0; i < list.count; ++i) configs.push_back(list.variants[i].config);
  return configs;
}

GroupedGemmConfig select_fp4_prefill_config(const Fp4PrefillWork& gate_up,
                                            const Fp4PrefillWork& down, int num_sms) {
  const auto cost = [&](const GroupedGemmConfig& c) {
    return fp4_prefill_us(c, gate_up, num_sms) + fp4_prefill_us(c, down, num_sms);
  };
  const std::vector<GroupedGemmConfig> configs =
      fp4_prefill_configs(gate_up.weights, gate_up.block_scales);
  return *std::min_element(configs.begin(), configs.end(),
                           [&](const auto& a, const auto& b) { return cost(a) < cost(b); });
}

void fp4_prefill(const GroupedGemmJob& job, const GroupedGemmConfig& config, int num_sms,
                 Stream stream) {
  if (job.sorted.num_blocks == 0) return;
  const Fp4PrefillVariantList list = variants_of(job.weights.fragments, job.input.group_size != 0);
  const auto* variant = std::find_if(list.variants, list.variants + list.count,
                                     [&](const auto& v) { return v.config == config; });
  if (variant == list.variants + list.count) {
    throw Error(ErrorCode::kInternal, "no 4-bit prefill kernel was compiled for this config");
  }
  const bool gated = job.activation != nullptr && job.activation->gated();
  const Fp4PrefillLauncher launcher = job.source == RowSource::kSorted ? variant->sorted_rows
                                      : gated                          ? variant->gathered_gated
                                                                       : variant->gathered_rows;
  Fp4PrefillParams params = params_of(job, config.block_m);
  const int columns = ceil_div(job.weights.num_rows, config.block_n);
  params.unit_columns = unit_columns(job.sorted.num_blocks, columns, params.num_k_blocks, num_sms);
  const int64_t units = int64_t{job.sorted.num_blocks} * ceil_div(columns, params.unit_columns);
  launcher(params, static_cast<int>(std::min<int64_t>(units, num_sms)), stream);
}

}  // namespace switchyard::cuda::sm90
