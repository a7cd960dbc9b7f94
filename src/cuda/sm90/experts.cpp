#include "cuda/sm90/experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/cost_model.h"
#include "core/expert_sort.h"
#include "core/fragment_convert.h"
#include "core/kernel_family.h"
#include "core/scale_layout.h"
#include "core/token_rows.h"
#include "cuda/check.h"
#include "cuda/combine.h"
#include "cuda/quantize.h"
#include "cuda/route_sort.h"
#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/down_sum.h"
#include "cuda/sm90/fp4_prefill.h"
#include "cuda/sm90/operand_rows.h"
#include "cuda/sm90/reencode_rows.h"

namespace switchyard::cuda::sm90 {
namespace {

/// Pairs of a chunk: expert outputs of H = 7168 stay below 4 GB, and a chunk of a large model has
/// a thousand rows per expert, so its weights are read again at no cost beside the products.
constexpr int64_t kChunkPairs = int64_t{1} << 18;
/// Heights of tiles.
constexpr int64_t kMinUnit = 32, kMaxUnit = 192;
/// Slabs of down take rows in any unit.
int32_t sort_unit(const GroupedGemmConfigs& configs, const DownSumPlan& slabs) {
  return slabs.fits ? configs.gate_up.block_m : configs.sort_unit();
}
/// Of gate_up alone, where slabs take the rows: of tiles that are whole waves.
GroupedGemmConfig wave_config(const Fp4PrefillWork& gate_up, int num_sms) {
  std::vector<GroupedGemmConfig> configs =
      fp4_prefill_configs(gate_up.weights, gate_up.block_scales);
  std::erase_if(configs, [](const auto& c) { return c.block_m % kDownSumWaveRows != 0; });
  return *std::min_element(configs.begin(), configs.end(), [&](const auto& a, const auto& b) {
    return fp4_prefill_us(a, gate_up, num_sms) < fp4_prefill_us(b, gate_up, num_sms);
  });
}
/// The sums of INT8 products stay exact in s32.
constexpr int64_t kMaxInt8Columns = (int64_t{1} << 31) / (128 * 128) - 1;

int64_t most_chunk_tokens(int64_t max_tokens, int64_t top_k) {
  return std::min(max_tokens, std::max<int64_t>(kChunkPairs / top_k, 1));
}

bool plain_values(const WeightRows& w) {
  return w.zero_points == nullptr && w.group_index == nullptr && w.global_scales == nullptr;
}

/// Rows begin on 16 bytes, and so do columns that a thread copies or stores.
bool aligned_columns(const WeightRows& w, Format rows) {
  return w.num_cols * element_bits(rows) / 8 % 16 == 0 && w.num_rows / w.halves % 8 == 0;
}

const char* why_unsupported_fragments(const PackedMatrices& packed, ActivationFormat activations) {
  if (!aligned_columns(packed.rows(), operand_format(activations, packed.rows()))) {
    return "rows are not multiples of 16 bytes";
  }
  // Activations fit: fragment_order() follows them.
  return packed.spread().wide == 0
             ? nullptr
             : "MX scales of a row spread, or INT4 zero points go, too far for exact conversion";
}

const char* why_unsupported_matrices(const PackedMatrices& packed, ActivationFormat activations) {
  const WeightRows& w = packed.rows();
  const ActivationStorage storage = activation_storage(activations);
  const bool rounds = activations != ActivationFormat::kNone;
  if (w.smooth_scales != nullptr && !rounds) {
    return "smooth scales are applied where activations are quantised";
  }
  if (in_fragment_order(w)) return why_unsupported_fragments(packed, activations);
  if (!plain_values(w)) return "weights with zero points, a group index or global scales";
  if (!aligned_columns(w, w.rows.format)) return "rows are not multiples of 16 bytes";
  switch (w.rows.format) {
    case Format::kBf16: return rounds ? "bf16 weights meet bf16 activations only" : nullptr;
    case Format::kFp8E4m3:
      if (!rounds || storage.format != Format::kFp8E4m3) {
        return "FP8 weights meet FP8 activations only";
      }
      return w.rows.num_groups == 1 || w.rows.group_size == 128
                 ? nullptr
                 : "FP8 scales are neither per row nor per 128 columns";
    case Format::kInt8:
      if (activations != ActivationFormat::kInt8PerToken &&
          activations != ActivationFormat::kInt8PerSlot) {
        return "INT8 weights meet INT8 activations per token or slot only";
      }
      if (w.rows.num_groups != 1) return "INT8 scales are not per row";
      return w.num_cols > kMaxInt8Columns ? "INT8 sums could leave s32" : nullptr;
    default: return "no kernel for many rows per expert in this weight format";
  }
}

}  // namespace

namespace {

/// Why there are no kernels for many rows per expert, or null.
const char* why_no_prefill(const LayerSpec& spec, const PackedMatrices& gate_up,
                           const PackedMatrices& down) {
  const ActivationFormat activations = resolved_activation_format(spec, BackendKind::kCuda);
  const char* why = why_unsupported_matrices(gate_up, activations);
  return why != nullptr ? why : why_unsupported_matrices(down, activations);
}

}  // namespace

const char* Sm90Experts::why_unsupported(const LayerSpec& spec, const PackedMatrices& gate_up,
                                         const PackedMatrices& down) {
  const char* why = why_no_prefill(spec, gate_up, down);
  // In passes over all weights, decode kernels still beat the generic ones at any batch.
  const bool decodes = in_fragment_order(gate_up.rows()) &&
                       DecodeExperts::why_unsupported(spec, gate_up, down).empty();
  return decodes ? nullptr : why;
}

Sm90Experts::Sm90Experts(const LayerSpec& spec, const PackedMatrices& gate_up,
                         const PackedMatrices& down, int device)
    : spec_(spec),
      activations_(resolved_activation_format(spec, BackendKind::kCuda)),
      device_(device),
      has_prefill_(why_no_prefill(spec, gate_up, down) == nullptr) {
  prepare(gate_up_, gate_up);
  prepare(down_, down);
  if (DecodeExperts::why_unsupported(spec, gate_up, down).empty()) {
    decode_.emplace(spec, gate_up, down, device);
  }
}

bool Sm90Experts::is_decode(int64_t num_tokens, int64_t top_k) const {
  if (!has_prefill_) return true;
  const BatchSize batch{spec_.num_experts, top_k, num_tokens};
  return decode_ && decodes(batch, layer_matrix(gate_up_), layer_matrix(down_),
                            prefill_us(num_tokens, top_k), device_facts(device_).num_sms);
}

LayerMatrix Sm90Experts::layer_matrix(const Sm90Matrices& m) const {
  const int token_bytes = element_bits(operand_format(activations_, gate_up_.rows)) / 8;
  const WeightRows& w = m.rows;
  return {.loop = in_fragment_order(w) ? multiplies_bytes(w.fragments.order)
                                             ? DecodeLoop::kFp4ToFp8
                                             : DecodeLoop::kFp4ToBf16
                  : token_bytes == 2   ? DecodeLoop::kBf16
                                       : DecodeLoop::kBytes,
          .weight_rows = w.num_rows,
          .token_row_bytes = int64_t{w.num_cols} * token_bytes,
          .expert_bytes = static_cast<double>(w.expert_bytes)};
}

double Sm90Experts::gemm_us(const Sm90Matrices& matrices, const GroupedGemmWork& work,
                            const GroupedGemmConfig& config) const {
  const int num_sms = device_facts(device_).num_sms;
  if (!in_fragment_order(matrices.rows)) return grouped_gemm_us(config, work, num_sms);
  return std::max(prefill_read_us(work.experts, static_cast<double>(matrices.rows.expert_bytes)),
                  fp4_prefill_us(config, fragment_work(matrices, work), num_sms));
}

double Sm90Experts::prefill_us(int64_t num_tokens, int64_t top_k) const {
  const GroupedGemmConfigs configs = select_configs(num_tokens, top_k);
  const LayerGemmWork work = work_of(num_tokens, top_k);
  return prefill_steps_us(activations_ != ActivationFormat::kNone) +
         gemm_us(gate_up_, work.gate_up, configs.gate_up) + gemm_us(down_, work.down, configs.down);
}

double Sm90Experts::chunk_us(int64_t num_tokens, int64_t top_k) const {
  const GroupedGemmConfigs configs = select_configs(num_tokens, top_k);
  const LayerGemmWork work = work_of(num_tokens, top_k);
  const double us = prefill_steps_us(activations_ != ActivationFormat::kNone) +
                    gemm_us(gate_up_, work.gate_up, configs.gate_up);
  if (plan_slabs(num_tokens, top_k).fits) {
    return us + down_sum_us(slab_batch(num_tokens, top_k), device_facts(device_).num_sms);
  }
  const auto combined = static_cast<double>(num_tokens * (top_k + 1) * spec_.expert_width() * 2);
  return us + gemm_us(down_, work.down, configs.down) + combined / (kPrefillReadGbps * 1e3);
}

int64_t Sm90Experts::most_slab_tokens(int64_t top_k) const {
  const int64_t most = kChunkPairs / top_k;
  int64_t fits = ceil_div<int64_t>(min_slab_bytes(), top_k * spec_.expert_width() * 2);
  if (!plan_slabs(fits, top_k).fits) return 0;
  for (int64_t end = most + 1; end - fits > 1;) {
    const int64_t middle = (fits + end) / 2;
    (plan_slabs(middle, top_k).fits ? fits : end) = middle;
  }
  return fits;
}

int64_t Sm90Experts::chunk_tokens(int64_t num_tokens, int64_t top_k) const {
  const int64_t most = most_chunk_tokens(num_tokens, top_k);
  const int64_t slabs = most_slab_tokens(top_k);
  if (slabs == 0 || most <= slabs) return most;
  const int64_t parts = ceil_div(most, slabs), part = ceil_div(most, parts);
  return static_cast<double>(parts) * chunk_us(part, top_k) < chunk_us(most, top_k) ? part : most;
}

void Sm90Experts::prepare(Sm90Matrices& matrices, const PackedMatrices& packed) const {
  matrices.rows = packed.rows();
  if (in_fragment_order(matrices.rows)) {  // scales lie among the codes
    matrices.deep = packed.spread().deeper_than(kMaxAddedSteps);
    return;
  }
  const ActivationStorage storage = activation_storage(activations_);
  const StoredRows input{.group_size = static_cast<int32_t>(storage.scale_block.cols)};
  matrices.scaling = scaling_of(input, matrices.rows);
  if (matrices.scaling != Scaling::kBlock || matrices.rows.rows.num_groups == 1) return;
  const int64_t count = block_scale_count(matrices.rows, spec_.num_experts);
  matrices.block_scales = DeviceBuffer(count * static_cast<int64_t>(sizeof(float)));
  const DeviceBuffer mixed(sizeof(int32_t));
  int32_t is_mixed = 0;
  mixed.copy_from_host(0, &is_mixed, sizeof(is_mixed));
  block_scale_table(matrices.rows, spec_.num_experts, matrices.block_scales.as<float>(),
                    mixed.as<int32_t>(), {});
  check(cudaMemcpy(&is_mixed, mixed.data(), sizeof(is_mixed), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  if (is_mixed != 0) {
    throw Error(ErrorCode::kUnsupported, "weight scales do not follow blocks of 128 x 128");
  }
}

const char* Sm90Experts::why_unsupported(DataType hidden_states, DataType /*output*/) const {
  if (activations_ != ActivationFormat::kNone) return nullptr;  // the quantiser takes any type
  return hidden_states == DataType::kBf16 ? nullptr : "bf16 weights meet bf16 hidden states only";
}

LayerGemmWork Sm90Experts::work_of(int64_t num_tokens, int64_t top_k) const {
  return layer_gemm_work(spec_, top_k, num_tokens, gate_up_.rows.rows.format,
                         gate_up_.scaling == Scaling::kBlock, may_round_hidden());
}

Fp4PrefillWork Sm90Experts::fragment_work(const Sm90Matrices& matrices,
                                          const GroupedGemmWork& work) const {
  return {.weights = matrices.rows.fragments,
          .block_scales = activations_ == ActivationFormat::kFp8Block128,
          .experts = work.experts,
          .rows_per_expert = work.rows_per_expert,
          .weight_rows = matrices.rows.num_rows,
          .token_row_bytes = int64_t{matrices.rows.num_cols} *
                             element_bits(operand_format(activations_, gate_up_.rows)) / 8};
}

GroupedGemmConfigs Sm90Experts::select_configs(int64_t num_tokens, int64_t top_k) const {
  const int num_sms = device_facts(device_).num_sms;
  const LayerGemmWork work = work_of(num_tokens, top_k);
  if (in_fragment_order(gate_up_.rows)) {
    const Fp4PrefillWork gate_up = fragment_work(gate_up_, work.gate_up);
    const GroupedGemmConfig config =
        plan_slabs(num_tokens, top_k).fits
            ? wave_config(gate_up, num_sms)
            : select_fp4_prefill_config(gate_up, fragment_work(down_, work.down), num_sms);
    return {config, config};
  }
  return best_configs(configs_of(gate_up_.rows.rows.format, gate_up_.scaling), work, num_sms);
}

DownSumBatch Sm90Experts::slab_batch(int64_t num_tokens, int64_t top_k) const {
  return {.tokens = num_tokens,
          .top_k = top_k,
          .experts = spec_.num_experts,
          .sorted_rows = sort_capacity(num_tokens, top_k, spec_.num_experts, kMaxUnit),
          .row_bytes = int64_t{down_.rows.num_cols} *
                       element_bits(operand_format(activations_, down_.rows)) / 8,
          .columns = down_.rows.num_rows};
}

int64_t Sm90Experts::min_slab_bytes() const {
  return in_fragment_order(down_.rows) ? kDownSumMinConvertedBytes : kDownSumMinOutputBytes;
}

DownSumPlan Sm90Experts::plan_slabs(int64_t num_tokens, int64_t top_k) const {
  // A single expert's rows are not sorted by pair, and there is no such kernel for other weights.
  const bool has_kernel = in_fragment_order(down_.rows)
                              ? down_.rows.fragments.order == FragmentOrder::kFp8 &&
                                    down_.rows.fragments.format == Format::kMxfp4 &&
                                    activations_ != ActivationFormat::kFp8Block128
                              : down_.rows.rows.format != Format::kBf16;
  if (spec_.num_experts == 1 || !has_kernel ||
      num_tokens * top_k * spec_.expert_width() * 2 < min_slab_bytes()) {
    return {};
  }
  return plan_down_sum(slab_batch(num_tokens, top_k), device_facts(device_).num_sms);
}

Sm90Workspace Sm90Experts::layout(int64_t chunk_tokens, int64_t top_k) const {
  const int64_t inner = spec_.intermediate_size;
  const int64_t width = spec_.expert_width();
  Sm90Workspace w;
  w.chunk_tokens = chunk_tokens;
  const int64_t pairs = w.chunk_tokens * top_k;
  w.slabs = plan_slabs(w.chunk_tokens, top_k);
  const bool one_height = w.slabs.fits || in_fragment_order(gate_up_.rows);
  const int64_t rows =
      sort_capacity(w.chunk_tokens, top_k, spec_.num_experts, one_height ? kMaxUnit : kMaxSortUnit);
  WorkspaceCarver carver;
  w.tile_counters = carver.take(kTileCounterBytes);
  if (w.slabs.fits) {
    w.slab_counters = carver.take(w.slabs.counter_bytes());
    w.pair_rows = carver.take(pairs * 4);
  }
  w.sorted_ids = carver.take(rows * 4);
  w.sorted_weights = carver.take(rows * 4);
  w.sorted_expert_ids = carver.take(ceil_div<int64_t>(rows, kMinUnit) * 4);
  w.num_valid_ids = carver.take(8);
  w.sort_scratch = carver.take(sort_scratch_bytes(w.chunk_tokens, top_k, spec_.num_experts));
  if (activations_ != ActivationFormat::kNone) {
    const ActivationStorage storage = activation_storage(activations_);
    const auto take = [&](WorkspaceRegion& codes, WorkspaceRegion& scales, int64_t num_rows,
                          int64_t cols) {
      codes = carver.take(num_rows *
                          padded_row_bytes(operand_format(activations_, gate_up_.rows), cols));
      scales = carver.take(num_rows * scale_cols(storage.scale_block, cols) * 4);
    };
    const bool per_pair = gate_up_.rows.smooth_scales != nullptr;
    take(w.input_codes, w.input_scales, per_pair ? pairs : w.chunk_tokens, width);
    take(w.hidden_codes, w.hidden_scales, rows, inner);
    if (is_mx(activations_)) {
      const int64_t cols = std::max(w.chunk_tokens * width, rows * inner);
      w.mx_codes = carver.take(cols + rows * kRowAlignment);
      w.mx_scales = carver.take(cols / 32 + rows);  // a row's last group may be short
    }
  }
  w.hidden = carver.take(rows * inner * 2);
  w.expert_output = carver.take(w.slabs.fits ? down_sum_most_ring_bytes(pairs, spec_.num_experts)
                                             : pairs * width * 2);
  w.bytes = carver.bytes();
  return w;
}

int64_t Sm90Experts::workspace_bytes(int64_t max_tokens, int64_t top_k) const {
  int64_t bytes = 0;
  if (has_prefill_) {
    // Fewer tokens may need more: those that are not summed slab by slab, or do not go through in
    // parts so that they are.
    const int64_t most = most_chunk_tokens(max_tokens, top_k);
    const int64_t output_bytes = std::max<int64_t>(top_k * spec_.expert_width() * 2, 1);
    const int64_t most_whole = ceil_div(min_slab_bytes(), output_bytes) - 1;
    bytes = std::max({layout(most, top_k).bytes, layout(std::min(most, most_whole), top_k).bytes,
                      layout(std::min(most, most_slab_tokens(top_k)), top_k).bytes,
                      stage_layout(max_tokens, top_k).bytes});
  }
  if (!decode_) return bytes;
  const int64_t decoded = has_prefill_ ? std::min(max_tokens, kDecodeMaxTokens) : max_tokens;
  return std::max({bytes, decode_->workspace_bytes(decoded, top_k),
                   decode_->stage_workspace_bytes(max_tokens, top_k)});
}

Sm90Experts::Batch Sm90Experts::sort(const RunExpertsArgs& args, int64_t begin, int64_t num_tokens,
                                     const Sm90Workspace& layout, Workspace workspace,
                                     Stream stream) const {
  const int64_t top_k = top_k_of(args.topk_ids);
  const GroupedGemmConfigs configs = select_configs(num_tokens, top_k);
  const int32_t unit = sort_unit(configs, layout.slabs);
  const int64_t capacity = sort_capacity(num_tokens, top_k, spec_.num_experts, unit);
  const TokenCount tokens{
      .limit = num_tokens, .on_device = args.num_tokens.as<const int32_t>(), .skipped = begin};
  SortJob job{.tokens = tokens,
              .top_k = static_cast<int32_t>(top_k),
              .num_experts = static_cast<int32_t>(spec_.num_experts),
              .unit_size = unit,
              .capacity = static_cast<int32_t>(capacity),
              .num_blocks = static_cast<int32_t>(capacity / unit),
              .num_valid = 1,
              .sorted_ids = layout.sorted_ids.in<int32_t>(workspace),
              .sorted_weights = layout.sorted_weights.in<int32_t>(workspace),
              .sorted_expert_ids = layout.sorted_expert_ids.in<int32_t>(workspace),
              .num_valid_ids = layout.num_valid_ids.in<int32_t>(workspace),
              .zeroed = layout.tile_counters.in(workspace),
              .zeroed_bytes = kTileCounterBytes};
  if (layout.slabs.fits) {
    job.reverse_sorted = layout.pair_rows.in<int32_t>(workspace);
    job.zeroed_bytes = layout.slab_counters.end() - layout.tile_counters.begin;
  }
  if (!args.topk_weights.empty()) {
    job.topk_weights = args.topk_weights.as<const int32_t>() + begin * top_k;
  }
  if (args.topk_ids.empty()) {
    decode_single_expert(job, {}, stream);
  } else {
    job.topk_ids = args.topk_ids.as<const int32_t>() + begin * top_k;
    route_and_sort(args.route, job, layout.sort_scratch.in(workspace), device_, stream);
  }
  return {.args = args,
          .begin = begin,
          .tokens = tokens,
          .configs = configs,
          .sorted = {.ids = job.sorted_ids,
                     .experts = job.sorted_expert_ids,
                     .num_valid = job.num_valid_ids,
                     .weights = layout.sorted_weights.in<const float>(workspace),
                     .num_blocks = job.num_blocks,
                     .block_rows = unit,
                     .top_k = job.top_k},
          .capacity = capacity,
          .layout = layout,
          .workspace = workspace,
          .stream = stream};
}

void Sm90Experts::follow_sorted(const Batch& batch, QuantizeJob& job) {
  job.sorted_ids = batch.sorted.ids;
  job.sorted_expert_ids = batch.sorted.experts;
  job.num_valid_ids = batch.sorted.num_valid;
  job.num_sorted = batch.capacity;
  job.unit_size = batch.sorted.block_rows;
  job.top_k = batch.sorted.top_k;
}

StoredRows Sm90Experts::quantize_input(const Batch& batch, RowSource& source) const {
  source = RowSource::kToken;
  const TensorView input = rows_of(batch.args.hidden_states, batch.begin, batch.tokens.limit);
  const int64_t cols = spec_.expert_width();
  if (activations_ == ActivationFormat::kNone) {
    return {.format = Format::kBf16, .values = input.data, .row_bytes = cols * 2};
  }
  CodedRows coded = coded_rows(activations_, cols, batch.layout.input_codes.in(batch.workspace),
                               batch.layout.input_scales.in(batch.workspace));
  QuantizeJob& job = coded.job;
  job.input = input.data;
  job.input_type = input.type;
  job.num_input_rows = batch.tokens.limit;
  job.rows = batch.tokens;
  if (gate_up_.rows.smooth_scales != nullptr) {  // rows differ by expert
    source = RowSource::kPair;
    job.channel_scale = gate_up_.rows.smooth_scales;
    job.channel_scale_stride = cols;
    follow_sorted(batch, job);
  }
  if (is_mx(activations_)) return quantize_mx(batch, job, batch.tokens);
  quantize(job, batch.stream);
  return coded.rows;
}

StoredRows Sm90Experts::quantize_mx(const Batch& batch, QuantizeJob job, TokenCount rows) const {
  ReencodeJob next{.format = job.format,
                   .codes = batch.layout.mx_codes.in<const uint8_t>(batch.workspace),
                   .code_row_bytes = job.value_row_bytes,
                   .scales = batch.layout.mx_scales.in<const uint8_t>(batch.workspace),
                   .cols = job.cols,
                   .rows = rows,
                   .values = static_cast<uint8_t*>(job.values),
                   .value_row_bytes = padded_row_bytes(Format::kFp8E4m3, job.cols),
                   .row_scales = static_cast<float*>(job.scales)};
  job.values = batch.layout.mx_codes.in(batch.workspace);
  job.scales = batch.layout.mx_scales.in(batch.workspace);
  job.scale_type = DataType::kF8E8m0;
  quantize(job, batch.stream);
  if (operand_format(activations_, gate_up_.rows) == Format::kBf16) {
    next.value_row_bytes = job.cols * 2;
    expand_rows(next, batch.stream);
    return {.format = Format::kBf16, .values = next.values, .row_bytes = next.value_row_bytes};
  }
  reencode_rows(next, batch.stream);
  return {.format = Format::kFp8E4m3,
          .values = next.values,
          .row_bytes = next.value_row_bytes,
          .scale_kind = ScaleKind::kF32,
          .scales = next.row_scales,
          .num_groups = 1};
}

void Sm90Experts::multiply(const Batch& batch, const GroupedGemmJob& job,
                           const GroupedGemmConfig& config) const {
  const int num_sms = device_facts(device_).num_sms;
  if (in_fragment_order(job.weights)) {
    return fp4_prefill(job, config, num_sms, batch.stream);
  }
  grouped_gemm(job, config, weight_map(job.weights, spec_.num_experts, config), num_sms,
               batch.stream);
}

bool Sm90Experts::may_round_hidden() const {
  return activations_ == ActivationFormat::kFp8Block128 && down_.rows.smooth_scales == nullptr &&
         !in_fragment_order(gate_up_.rows) &&
         rounds_output(gate_up_.scaling, spec_.activation, spec_.intermediate_size);
}
bool Sm90Experts::rounds_hidden(const GroupedGemmConfigs& configs) const {
  return may_round_hidden() && holds_gated_scale(configs.gate_up);
}

StoredRows Sm90Experts::gate_up(const Batch& batch, const StoredRows& input,
                                RowSource source) const {
  GroupedGemmJob job{.sorted = batch.sorted,
                     .tile_counter = batch.layout.tile_counters.in<uint32_t>(batch.workspace),
                     .source = source,
                     .input = input,
                     .num_input_rows = batch.tokens.limit,
                     .weights = gate_up_.rows,
                     .num_experts = spec_.num_experts,
                     .block_scales = gate_up_.block_scale_data(),
                     .deep_scales = gate_up_.deep,
                     .activation = &spec_.activation,
                     .weight_before_bias = spec_.weight_position == WeightPosition::kInput,
                     .output = batch.layout.hidden.in(batch.workspace),
                     .output_stride = spec_.intermediate_size};
  if (!rounds_hidden(batch.configs)) {
    multiply(batch, job, batch.configs.gate_up);
    return quantize_hidden(batch);
  }
  const CodedRows coded = coded_rows(activations_, spec_.intermediate_size,
                                     batch.layout.hidden_codes.in(batch.workspace),
                                     batch.layout.hidden_scales.in(batch.workspace));
  job.output = coded.job.values;
  job.output_stride = coded.rows.row_bytes;
  job.output_scales = static_cast<float*>(coded.job.scales);
  multiply(batch, job, batch.configs.gate_up);
  return coded.rows;
}

StoredRows Sm90Experts::quantize_hidden(const Batch& batch) const {
  const int64_t cols = spec_.intermediate_size;
  void* hidden = batch.layout.hidden.in(batch.workspace);
  if (activations_ == ActivationFormat::kNone) {
    return {.format = Format::kBf16, .values = hidden, .row_bytes = cols * 2};
  }
  CodedRows coded = coded_rows(activations_, cols, batch.layout.hidden_codes.in(batch.workspace),
                               batch.layout.hidden_scales.in(batch.workspace));
  QuantizeJob& job = coded.job;
  job.input = hidden;
  job.input_type = DataType::kBf16;
  job.num_input_rows = batch.capacity;
  follow_sorted(batch, job);
  job.rows_stay_sorted = true;
  job.channel_scale = down_.rows.smooth_scales;
  job.channel_scale_stride = cols;
  if (is_mx(activations_)) {
    return quantize_mx(batch, job, {.limit = batch.capacity, .on_device = batch.sorted.num_valid});
  }
  quantize(job, batch.stream);
  return coded.rows;
}

GroupedGemmJob Sm90Experts::down_job(const Batch& batch, const StoredRows& hidden) const {
  GroupedGemmJob job{.sorted = batch.sorted,
                     .tile_counter = batch.layout.tile_counters.in<uint32_t>(batch.workspace) + 1,
                     .source = RowSource::kSorted,
                     .input = hidden,
                     .num_input_rows = batch.capacity,
                     .weights = down_.rows,
                     .num_experts = spec_.num_experts,
                     .block_scales = down_.block_scale_data(),
                     .deep_scales = down_.deep,
                     .output_per_pair = true,
                     .output = batch.layout.expert_output.in(batch.workspace),
                     .output_stride = spec_.expert_width()};
  if (spec_.weight_position == WeightPosition::kInput) job.sorted.weights = nullptr;
  return job;
}

void Sm90Experts::down(const Batch& batch, const StoredRows& hidden) const {
  multiply(batch, down_job(batch, hidden), batch.configs.down);
}

CombineJob Sm90Experts::combine_job(const Batch& batch) const {
  const TensorView addend = rows_of(batch.args.addend, batch.begin, batch.tokens.limit);
  const TensorView output = rows_of(batch.args.output, batch.begin, batch.tokens.limit);
  const TensorView ids = rows_of(batch.args.topk_ids, batch.begin, batch.tokens.limit);
  return {.expert_output = batch.layout.expert_output.in(batch.workspace),
          .input_type = DataType::kBf16,
          .topk_ids = ids.as<const int32_t>(),
          .num_experts = static_cast<int32_t>(spec_.num_experts),
          .addend = addend.data,
          .tokens = batch.tokens,
          .top_k = batch.sorted.top_k,
          .width = spec_.expert_width(),
          .output = output.data,
          .output_type = output.type};
}

void Sm90Experts::combine(const Batch& batch) const {
  cuda::combine(combine_job(batch), batch.stream);
}

void Sm90Experts::down_and_combine(const Batch& batch, const StoredRows& hidden) const {
  if (!batch.layout.slabs.fits) {
    down(batch, hidden);
    return combine(batch);
  }
  down_sum({.down = down_job(batch, hidden),
            .sum = combine_job(batch),
            .pair_rows = batch.layout.pair_rows.in<const int32_t>(batch.workspace),
            .ring = batch.layout.expert_output.in(batch.workspace),
            .counters = batch.layout.slab_counters.in<uint32_t>(batch.workspace)},
           batch.layout.slabs, device_facts(device_).num_sms, batch.stream);
}

void Sm90Experts::run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const {
  const int64_t num_tokens = args.hidden_states.extent(0);
  const int64_t top_k = top_k_of(args.topk_ids);
  if (is_decode(num_tokens, top_k)) return decode_->run(args, workspace, stream);
  const Sm90Workspace places = layout(chunk_tokens(num_tokens, top_k), top_k);
  for (int64_t begin = 0; begin < num_tokens; begin += places.chunk_tokens) {
    const int64_t count = std::min(places.chunk_tokens, num_tokens - begin);
    const Batch batch = sort(args, begin, count, places, workspace, stream);
    RowSource source;
    const StoredRows input = quantize_input(batch, source);
    down_and_combine(batch, gate_up(batch, input, source));
  }
}

void Sm90Experts::plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
                       Plan& plan) const {
  if (is_decode(num_tokens, top_k)) return decode_->plan(num_tokens, top_k, limits, plan);
  const int64_t chunk = chunk_tokens(num_tokens, top_k);
  const GroupedGemmConfigs configs = select_configs(chunk, top_k);
  const double touched = expected_distinct_experts(spec_.num_experts, top_k, chunk);
  const auto pairs = static_cast<double>(num_tokens * top_k);
  const auto tokens = static_cast<double>(num_tokens);
  const auto width = static_cast<double>(spec_.expert_width());
  const auto inner = static_cast<double>(spec_.intermediate_size);
  const bool rounds = activations_ != ActivationFormat::kNone;
  const Format format = operand_format(activations_, gate_up_.rows);
  const bool fragments = in_fragment_order(gate_up_.rows);
  const double code_bytes = element_bits(format) / 8;
  const double rate = format == Format::kBf16   ? limits.bf16_gflops
                      : format == Format::kInt8 ? limits.int8_gops
                                                : limits.fp8_gflops;
  const auto add = [&](const char* step, const char* kernel, const std::string& why, double bytes,
                       double flops) {
    plan.steps.push_back({.step = step,
                          .kernel = kernel,
                          .why = why,
                          .bytes = bytes,
                          .flops = flops,
                          .predicted_us = predict_us(bytes, flops, limits.read_gbps, rate)});
  };
  const DownSumPlan slabs = plan_slabs(chunk, top_k);
  const int32_t unit = sort_unit(configs, slabs);
  add("sort", sort_kernels(plan_sort(chunk, top_k, spec_.num_experts, unit)),
      fmt::format("units of {} rows, which the GEMMs' tiles divide", unit), pairs * 16, 0);
  if (rounds) {
    add("quantize", "quantize", fmt::format("tokens to {}", to_string(activations_)),
        tokens * width * (2 + code_bytes), 0);
  }
  const LayerGemmWork work = work_of(chunk, top_k);
  const double chunks = tokens / static_cast<double>(std::max<int64_t>(chunk, 1));
  const auto add_gemm = [&](const char* step, const Sm90Matrices& m, const GroupedGemmWork& w,
                            const GroupedGemmConfig& config, double row_bytes, double flops,
                            const char* rows) {
    const int num_sms = device_facts(device_).num_sms;
    const auto us = [&](const GroupedGemmConfig& c) {
      return grouped_gemm_clocks(c, w, num_sms) * chunks / gemm_cost::kMatrixClock * 1e6;
    };
    std::string why =
        fmt::format("{} x {} tiles, {} stages", config.block_m, config.block_n, config.num_stages);
    const double bytes = touched * static_cast<double>(m.rows.expert_bytes) * chunks + row_bytes;
    if (fragments) return add(step, "sm90_fp4_prefill", why + ", " + rows, bytes, flops);
    why += fmt::format(": {:.0f} us", us(config));
    for (const GroupedGemmConfig& other : configs_of(m.rows.rows.format, m.scaling)) {
      if (other == config) continue;
      why += fmt::format(" (with {} x {}: {:.0f})", other.block_m, other.block_n, us(other));
    }
    add(step, "sm90_grouped_gemm", why + "; " + rows, bytes, flops);
    if (limits.read_gbps <= 0) return;
    plan.steps.back().predicted_us = std::max(plan.steps.back().predicted_us, us(config));
  };
  const double matrices = spec_.activation.gated() ? 2 : 1;
  add_gemm("gate_up", gate_up_, work.gate_up, configs.gate_up,
           tokens * width * code_bytes + pairs * inner * 2, 2 * matrices * pairs * width * inner,
           "rows gathered by cp.async");
  if (rounds && !rounds_hidden(configs)) {
    add("quantize", "quantize", fmt::format("intermediate to {}", to_string(activations_)),
        pairs * inner * (2 + code_bytes), 0);
  }
  if (slabs.fits) {
    add("down", "sm90_down_sum",
        fmt::format(
            "rows stay in shared memory; {} slabs of {} columns pass through a ring of {} in "
            "the L2 ({:.0f} MB) and are summed there, f32 in slot order: no combine",
            slabs.num_slabs, kDownSumColumns, slabs.num_slots,
            static_cast<double>(slabs.ring_bytes()) / 1e6),
        touched * static_cast<double>(down_.rows.expert_bytes) * chunks +
            pairs * inner * code_bytes + tokens * width * 2,
        2 * pairs * width * inner);
    if (limits.read_gbps > 0) {
      const double us = down_sum_us(slab_batch(chunk, top_k), device_facts(device_).num_sms);
      plan.steps.back().predicted_us = std::max(plan.steps.back().predicted_us, us * chunks);
    }
    return;
  }
  add_gemm("down", down_, work.down, configs.down, pairs * inner * code_bytes + pairs * width * 2,
           2 * pairs * width * inner, "rows by the copy engine");
  add("combine", "combine", "f32 sum in slot order", pairs * width * 2 + tokens * width * 2,
      2 * pairs * width);
}

}  // namespace switchyard::cuda::sm90
