// gate_up or down alone, on lists that the caller sorted (ops::Experts): the layer's kernels on
// blocks of whatever height the caller chose.

#include <algorithm>

#include "core/expert_sort.h"
#include "cuda/check.h"
#include "cuda/sm90/experts.h"
#include "cuda/sm90/fp4_prefill.h"
#include "cuda/sm90/operand_rows.h"

namespace switchyard::cuda::sm90 {

bool Sm90Experts::run_stage(const StageJob& job, Workspace workspace, Stream stream) const {
  if (why_unsupported(job.input.type, job.output.type) != nullptr) return false;
  if (!on_16_bytes(job.input) || !on_16_bytes(job.output)) return false;
  const auto config = stage_config(job);
  const bool decodes = !config || is_decode(job.input.extent(0), job.map.top_k);
  if (decodes && decode_ && decode_->run_stage(job, workspace, stream)) return true;
  if (!config) return false;
  prefill_stage(job, *config, workspace, stream);
  return true;
}

std::optional<GroupedGemmConfig> Sm90Experts::stage_config(const StageJob& job) const {
  if (!has_prefill_ || job.output.type != DataType::kBf16) return {};
  const int num_sms = device_facts(device_).num_sms;
  const Sm90Matrices& matrices = job.is_down ? down_ : gate_up_;
  const LayerGemmWork layer = work_of(job.input.extent(0), job.map.top_k);
  const GroupedGemmWork& work = job.is_down ? layer.down : layer.gate_up;
  const bool fragments = in_fragment_order(matrices.rows);
  const Fp4PrefillWork fragment = fragment_work(matrices, work);
  const auto cost = [&](const GroupedGemmConfig& c) {
    return fragments ? fp4_prefill_us(c, fragment, num_sms) : grouped_gemm_us(c, work, num_sms);
  };
  std::optional<GroupedGemmConfig> best;
  for (const GroupedGemmConfig& c :
       fragments ? fp4_prefill_configs(fragment.weights, fragment.block_scales)
                 : configs_of(matrices.rows.rows.format, matrices.scaling)) {
    const bool divides =
        fragments ? job.map.unit_size == c.block_m : job.map.unit_size % c.block_m == 0;
    if (divides && (!best || cost(c) < cost(*best))) best = c;
  }
  return best;
}

Sm90Workspace Sm90Experts::stage_layout(int64_t num_tokens, int64_t top_k) const {
  const int64_t inner = spec_.intermediate_size;
  const int64_t width = spec_.expert_width();
  const int64_t pairs = num_tokens * top_k;
  Sm90Workspace w;
  WorkspaceCarver carver;
  w.tile_counters = carver.take(kTileCounterBytes);
  if (activations_ != ActivationFormat::kNone) {
    const bool per_pair = gate_up_.rows.smooth_scales != nullptr;
    const int64_t tokens = per_pair ? pairs : num_tokens;
    const Format format = operand_format(activations_, gate_up_.rows);
    const ScaleBlock block = activation_storage(activations_).scale_block;
    w.input_codes = carver.take(std::max(tokens * padded_row_bytes(format, width),
                                         pairs * padded_row_bytes(format, inner)));
    w.input_scales = carver.take(
        std::max(tokens * scale_cols(block, width), pairs * scale_cols(block, inner)) * 4);
    if (is_mx(activations_)) {
      const int64_t cols = std::max(tokens * width, pairs * inner);
      w.mx_codes = carver.take(cols + pairs * kRowAlignment);
      w.mx_scales = carver.take(cols / 32 + pairs);  // a row's last group may be short
    }
  }
  w.bytes = carver.bytes();
  return w;
}

StoredRows Sm90Experts::quantize_stage(const Batch& batch, const StageJob& job,
                                       RowSource source) const {
  const int64_t cols = job.input.extent(job.input.rank - 1);
  if (activations_ == ActivationFormat::kNone) {
    return {.format = Format::kBf16, .values = job.input.data, .row_bytes = cols * 2};
  }
  const CodedRows coded =
      coded_rows(activations_, cols, batch.layout.input_codes.in(batch.workspace),
                 batch.layout.input_scales.in(batch.workspace));
  QuantizeJob rows = coded.job;
  rows.input = job.input.data;
  rows.input_type = job.input.type;
  rows.num_input_rows = job.input.num_elements() / std::max<int64_t>(cols, 1);
  rows.rows = batch.tokens;
  rows.channel_scale = (job.is_down ? down_ : gate_up_).rows.smooth_scales;
  rows.channel_scale_stride = cols;
  if (source == RowSource::kPair) {  // rows of skipped pairs hold anything
    follow_sorted(batch, rows);
    rows.input_per_pair = job.is_down;
  }
  if (is_mx(activations_)) {
    return quantize_mx(batch, rows, {.limit = job.is_down ? rows.num_input_rows : rows.rows.limit});
  }
  quantize(rows, batch.stream);
  return coded.rows;
}

void Sm90Experts::prefill_stage(const StageJob& job, const GroupedGemmConfig& config,
                                Workspace workspace, Stream stream) const {
  const int64_t num_tokens = job.input.extent(0);
  const Sm90Matrices& matrices = job.is_down ? down_ : gate_up_;
  const bool per_pair = job.is_down || matrices.rows.smooth_scales != nullptr;
  const RowSource source = per_pair ? RowSource::kPair : RowSource::kToken;
  const Sm90Workspace places = stage_layout(num_tokens, job.map.top_k);
  const RunExpertsArgs none;
  const Batch batch{.args = none,
                    .begin = 0,
                    .tokens = job.map.tokens,
                    .configs = {config, config},
                    .sorted = {.ids = job.map.sorted_ids,
                               .experts = job.map.sorted_expert_ids,
                               .num_valid = job.map.num_valid_ids,
                               .weights = job.map.sorted_weights,
                               .num_blocks = job.map.num_blocks,
                               .block_rows = job.map.unit_size,
                               .top_k = job.map.top_k},
                    .capacity = int64_t{job.map.num_blocks} * job.map.unit_size,
                    .layout = places,
                    .workspace = workspace,
                    .stream = stream};
  void* counter = places.tile_counters.in(workspace);
  check(cudaMemsetAsync(counter, 0, kTileCounterBytes, static_cast<cudaStream_t>(stream.handle)),
        "cudaMemsetAsync");
  const StoredRows input = quantize_stage(batch, job, source);
  GroupedGemmJob gemm{.sorted = batch.sorted,
                      .tile_counter = static_cast<uint32_t*>(counter),
                      .source = source,
                      .input = input,
                      .num_input_rows = per_pair ? num_tokens * job.map.top_k : num_tokens,
                      .weights = matrices.rows,
                      .num_experts = spec_.num_experts,
                      .block_scales = matrices.block_scale_data(),
                      .deep_scales = matrices.deep,
                      .activation = job.is_down ? nullptr : &spec_.activation,
                      .output_per_pair = true,
                      .output = job.output.data,
                      .output_stride = job.output.extent(job.output.rank - 1)};
  const bool on_input = spec_.weight_position == WeightPosition::kInput;
  gemm.weight_before_bias = on_input && !job.is_down;
  if (on_input && job.is_down) gemm.sorted.weights = nullptr;
  multiply(batch, gemm, config);
}

}  // namespace switchyard::cuda::sm90
