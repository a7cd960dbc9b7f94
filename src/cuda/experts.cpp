#include "cuda/experts.h"

#include <algorithm>

#include "core/cost_model.h"
#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "core/token_rows.h"
#include "cuda/alpha_choice.h"
#include "cuda/combine.h"
#include "cuda/reachable.h"

namespace switchyard::cuda {
namespace {

/// Pairs of a chunk: the f32 intermediates of H = 7168 stay below 0.5 GB.
constexpr int64_t kChunkPairs = 16384;

int64_t chunk_tokens(int64_t max_tokens, int64_t top_k) {
  return std::min(max_tokens, std::max<int64_t>(kChunkPairs / top_k, 1));
}

DataType scale_type_of(Format format) {
  return scale_kind(format) == ScaleKind::kE8m0 ? DataType::kF8E8m0 : DataType::kF32;
}

/// Codes and scales of rows in an activation format.
struct CodeBytes {
  int64_t codes, scales;
};
CodeBytes code_bytes(const ActivationStorage& storage, int64_t rows, int64_t cols) {
  const int64_t scales =
      scale_rows(storage.scale_block, rows) * scale_cols(storage.scale_block, cols);
  return {rows * padded_row_bytes(storage.format, cols),
          scales * element_bytes(scale_type_of(storage.format))};
}

}  // namespace

StoredRows plain_rows(const TensorView& input) {
  const int64_t cols = input.extent(input.rank - 1);
  const int64_t row_bytes = cols * element_bytes(input.type);
  return {.format = input.type == DataType::kF32    ? Format::kF32
                    : input.type == DataType::kBf16 ? Format::kBf16
                                                    : Format::kF16,
          .values = input.data,
          .row_bytes = row_bytes,
          .aligned = cols % 8 == 0 && reinterpret_cast<uintptr_t>(input.data) % kRowAlignment == 0};
}

CudaExperts::CudaExperts(const LayerSpec& spec, const ExpertSource& source,
                         const LayerOptions& options)
    : spec_(spec),
      activations_(resolved_activation_format(spec, BackendKind::kCuda)),
      device_(options.device) {
  const DeviceScope scope(device_);
  for (int64_t e = 0; e < source.num_experts; ++e) {
    const ExpertWeights w = source.load(e);
    const bool gated = spec.activation.gated();
    if (e == 0) {
      const bool has_bias = !w.up_bias.empty() || !w.gate_bias.empty();
      const FragmentOrder order = fragment_order(activations_, w.up, w.down, device_);
      gate_up_ = PackedMatrices(w.up, gated ? 2 : 1, has_bias, source.num_experts, order);
      down_ = PackedMatrices(w.down, 1, !w.down_bias.empty(), source.num_experts, order);
    }
    if (gated) {
      gate_up_.pack(e, {w.gate, w.up}, {w.gate_bias, w.up_bias});
    } else {
      gate_up_.pack(e, {w.up}, {w.up_bias});
    }
    down_.pack(e, {w.down}, {w.down_bias});
    if (source.release) source.release(e);
    if (options.on_progress) options.on_progress(e + 1, source.num_experts);
  }
  gate_up_.finish("experts' gate/up");
  down_.finish("experts' down");
  if (options.generic_kernels) {
    why_not_tuned_ = "only generic kernels were asked for";
  } else {
    tuned_ = tuned_experts(spec_, gate_up_, down_, device_, why_not_tuned_);
  }
}

ExpertsWorkspace CudaExperts::layout(int64_t max_tokens, int64_t top_k) const {
  const int64_t inner = spec_.intermediate_size;
  const int64_t width = spec_.expert_width();
  ExpertsWorkspace w;
  w.chunk_tokens = chunk_tokens(max_tokens, top_k);
  const int64_t pairs = w.chunk_tokens * top_k;
  const int64_t rows = sort_capacity(w.chunk_tokens, top_k, spec_.num_experts, kGemmRows);
  WorkspaceCarver carver;
  w.topk_ids = carver.take(max_tokens * top_k * 4);
  w.topk_weights = carver.take(max_tokens * top_k * 4);
  w.crowded = carver.take(max_tokens * 4);
  w.tuned_begin = carver.bytes();
  w.sorted_ids = carver.take(rows * 4);
  w.sorted_weights = carver.take(rows * 4);
  w.sorted_expert_ids = carver.take(ceil_div<int64_t>(rows, kGemmRowsDecode) * 4);
  w.num_valid_ids = carver.take(8);
  w.sort_scratch = carver.take(sort_scratch_bytes(w.chunk_tokens, top_k, spec_.num_experts));
  if (rounds_activations()) {
    // The public gate_up and down get whole batches in an order of the caller's.
    const ActivationStorage storage = activation_storage(activations_);
    const int64_t input_rows = gate_up_.has_smooth_scales() ? max_tokens * top_k : max_tokens;
    const CodeBytes input = code_bytes(storage, input_rows, width);
    const CodeBytes hidden = code_bytes(storage, max_tokens * top_k, inner);
    w.input_codes = carver.take(input.codes);
    w.input_scales = carver.take(input.scales);
    w.hidden_codes = carver.take(hidden.codes);
    w.hidden_scales = carver.take(hidden.scales);
  }
  const int64_t dense_rows = std::min<int64_t>(max_tokens, kDenseTokens) * spec_.num_experts;
  w.hidden = carver.take(std::max(pairs, dense_rows) * inner * 4);
  w.expert_output = carver.take(pairs * width * 4);
  w.bytes = carver.bytes();
  return w;
}

int64_t CudaExperts::workspace_bytes(int64_t max_tokens, int64_t top_k) const {
  const ExpertsWorkspace generic = layout(max_tokens, top_k);
  if (!tuned_) return generic.bytes;
  return std::max(generic.bytes, generic.tuned_begin + tuned_->workspace_bytes(max_tokens, top_k));
}

StoredRows CudaExperts::stored_input(const Batch& batch, const TensorView& input, bool per_pair,
                                     const PackedMatrices& weights, WorkspaceRegion codes,
                                     WorkspaceRegion scales, bool& input_per_pair) const {
  input_per_pair = per_pair;
  if (!rounds_activations()) return plain_rows(input);
  const ActivationStorage storage = activation_storage(activations_);
  const int64_t cols = input.extent(input.rank - 1);
  const bool sorted = batch.map.sorted_ids != nullptr;
  QuantizeJob job{.input = input.data,
                  .input_type = input.type,
                  .num_input_rows = input.num_elements() / std::max<int64_t>(cols, 1),
                  .cols = cols,
                  .rows = batch.map.tokens,
                  .channel_scale = weights.rows().smooth_scales,
                  .channel_scale_stride = cols,
                  .format = storage.format,
                  .scale_block = storage.scale_block,
                  .values = codes.in(batch.workspace),
                  .value_row_bytes = padded_row_bytes(storage.format, cols),
                  .scales = scales.in(batch.workspace),
                  .scale_type = scale_type_of(storage.format)};
  // Rows that differ by expert, and rows that only exist where a pair does, follow the sorted list.
  input_per_pair = per_pair || (sorted && weights.has_smooth_scales());
  if (sorted && input_per_pair) {
    job.sorted_ids = batch.map.sorted_ids;
    job.sorted_expert_ids = batch.map.sorted_expert_ids;
    job.num_valid_ids = batch.map.num_valid_ids;
    job.num_sorted = static_cast<int64_t>(batch.map.num_blocks) * batch.map.unit_size;
    job.unit_size = batch.map.unit_size;
    job.top_k = batch.map.top_k;
    job.input_per_pair = per_pair;
  }
  quantize(job, batch.stream);
  const bool per_tensor = storage.scale_block.rows == 0;
  return {
      .format = storage.format,
      .values = job.values,
      .row_bytes = job.value_row_bytes,
      .scale_kind = scale_kind(storage.format),
      .scales = job.scales,
      // No groups: every row starts at scale 0.
      .num_groups = per_tensor ? 0 : static_cast<int32_t>(scale_cols(storage.scale_block, cols)),
      .group_size = static_cast<int32_t>(storage.scale_block.cols)};
}

void CudaExperts::gate_up_rows(const Batch& batch, const TensorView& input, void* output,
                               DataType output_type) const {
  GemmJob job{.map = batch.map,
              .weights = gate_up_.rows(),
              .activation = &spec_.activation,
              .weight_before_bias = spec_.weight_position == WeightPosition::kInput,
              .output = output,
              .output_type = output_type};
  job.input = stored_input(batch, input, false, gate_up_, batch.layout.input_codes,
                           batch.layout.input_scales, job.input_per_pair);
  if (rounds_activations()) job.weights.smooth_scales = nullptr;  // already in the codes
  grouped_gemm(job, batch.stream);
}

GemmJob CudaExperts::down_job(const Batch& batch, const TensorView& input) const {
  GemmJob job{.map = batch.map, .weights = down_.rows()};
  job.input = stored_input(batch, input, true, down_, batch.layout.hidden_codes,
                           batch.layout.hidden_scales, job.input_per_pair);
  if (rounds_activations()) job.weights.smooth_scales = nullptr;
  if (spec_.weight_position == WeightPosition::kInput) {
    job.map.sorted_weights = nullptr;
    job.map.token_weights = nullptr;
  }
  return job;
}

CudaExperts::Batch CudaExperts::sort_chunk(const RunExpertsArgs& args, int64_t begin,
                                           int64_t num_tokens, const ExpertsWorkspace& layout,
                                           Workspace workspace, Stream stream) const {
  Batch batch{.layout = layout, .workspace = workspace, .stream = stream};
  const TokenCount tokens{
      .limit = num_tokens, .on_device = args.num_tokens.as<const int32_t>(), .skipped = begin};
  batch.map.tokens = tokens;
  if (args.topk_ids.empty()) {
    if (!args.topk_weights.empty()) {
      batch.map.token_weights = args.topk_weights.as<const float>() + begin;
    }
    return batch;
  }
  const int64_t top_k = args.topk_ids.extent(1);
  const double rows_per_expert =
      static_cast<double>(num_tokens * top_k) / static_cast<double>(spec_.num_experts);
  const int unit = gemm_rows(rows_per_expert);
  const int64_t capacity = sort_capacity(num_tokens, top_k, spec_.num_experts, unit);
  SortJob job{.topk_ids = args.topk_ids.as<const int32_t>() + begin * top_k,
              .tokens = tokens,
              .top_k = static_cast<int32_t>(top_k),
              .num_experts = static_cast<int32_t>(spec_.num_experts),
              .unit_size = unit,
              .capacity = static_cast<int32_t>(capacity),
              .num_blocks = static_cast<int32_t>(capacity / unit),
              .num_valid = 1,
              .sorted_ids = layout.sorted_ids.in<int32_t>(workspace),
              .sorted_weights = layout.sorted_weights.in<int32_t>(workspace),
              .sorted_expert_ids = layout.sorted_expert_ids.in<int32_t>(workspace),
              .num_valid_ids = layout.num_valid_ids.in<int32_t>(workspace)};
  if (!args.topk_weights.empty()) {
    job.topk_weights = args.topk_weights.as<const int32_t>() + begin * top_k;
  }
  route_and_sort(args.route, job, layout.sort_scratch.in(workspace), device_, stream);
  batch.map.sorted_ids = job.sorted_ids;
  batch.map.sorted_weights = layout.sorted_weights.in<const float>(workspace);
  batch.map.sorted_expert_ids = job.sorted_expert_ids;
  batch.map.num_valid_ids = job.num_valid_ids;
  batch.map.unit_size = unit;
  batch.map.num_blocks = job.num_blocks;
  batch.map.top_k = job.top_k;
  return batch;
}

void CudaExperts::run_chunk(const RunExpertsArgs& args, int64_t begin, const Batch& batch) const {
  const int64_t num_tokens = batch.map.tokens.limit;
  const int64_t rows = num_tokens * batch.map.top_k;
  const int64_t width = spec_.expert_width();
  void* hidden = batch.layout.hidden.in(batch.workspace);
  gate_up_rows(batch, rows_of(args.hidden_states, begin, num_tokens), hidden, DataType::kF32);
  GemmJob job = down_job(
      batch, TensorView::contiguous(hidden, DataType::kF32, {rows, spec_.intermediate_size}));
  const TensorView addend = rows_of(args.addend, begin, num_tokens);
  const TensorView output = rows_of(args.output, begin, num_tokens);
  if (batch.map.sorted_ids == nullptr) {  // one row per token: nothing to combine
    job.addend = addend.as<const float>();
    job.output = output.data;
    job.output_type = output.type;
    return grouped_gemm(job, batch.stream);
  }
  job.output = batch.layout.expert_output.in(batch.workspace);
  grouped_gemm(job, batch.stream);
  combine({.expert_output = job.output,
           .topk_ids = args.topk_ids.as<const int32_t>() + begin * batch.map.top_k,
           .num_experts = static_cast<int32_t>(spec_.num_experts),
           .addend = addend.data,
           .tokens = batch.map.tokens,
           .top_k = batch.map.top_k,
           .width = width,
           .output = output.data,
           .output_type = output.type},
          batch.stream);
}

void CudaExperts::run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const {
  const DeviceScope scope(device_);
  require_reachable("hidden_states", args.hidden_states);
  require_reachable("output", args.output);
  require_reachable("workspace", TensorView{.data = workspace.data});
  if (args.route != nullptr) require_reachable("router_logits", args.route->args.router_logits);
  const int64_t num_tokens = args.hidden_states.extent(0);
  const int64_t top_k = top_k_of(args.topk_ids);
  if (num_tokens == 0) return;
  if (tuned_ && tuned_->why_unsupported(args.hidden_states.type, args.output.type) == nullptr) {
    return tuned_->run(args, workspace, stream);
  }
  const ExpertsWorkspace places = layout(num_tokens, top_k);
  for (int64_t begin = 0; begin < num_tokens; begin += places.chunk_tokens) {
    const int64_t count = std::min(places.chunk_tokens, num_tokens - begin);
    run_chunk(args, begin, sort_chunk(args, begin, count, places, workspace, stream));
  }
}

namespace {

/// The row map of a caller's sorted lists.
template <class Args>
GemmRowMap sorted_map(const Args& args, int64_t num_tokens) {
  GemmRowMap map{.sorted_ids = args.sorted_ids.template as<const int32_t>(),
                 .sorted_expert_ids = args.sorted_expert_ids.template as<const int32_t>(),
                 .num_valid_ids = args.num_valid_ids.template as<const int32_t>(),
                 .sorted_weights = args.sorted_weights.template as<const float>(),
                 .unit_size = static_cast<int32_t>(args.unit_size),
                 .num_blocks = static_cast<int32_t>(args.sorted_expert_ids.extent(0)),
                 .top_k = static_cast<int32_t>(args.top_k)};
  map.tokens.limit = num_tokens;
  return map;
}

}  // namespace

void CudaExperts::gate_up(const ops::GateUpArgs& args, Workspace workspace, Stream stream) const {
  const DeviceScope scope(device_);
  require_reachable("hidden_states", args.hidden_states);
  require_reachable("output", args.output);
  require_reachable("workspace", TensorView{.data = workspace.data});
  const int64_t num_tokens = args.hidden_states.extent(0);
  const GemmRowMap map = sorted_map(args, num_tokens);
  if (tuned_ && tuned_->run_stage({.map = map, .input = args.hidden_states, .output = args.output},
                                  workspace, stream)) {
    return;
  }
  Batch batch{.map = map,
              .layout = layout(num_tokens, args.top_k),
              .workspace = workspace,
              .stream = stream};
  gate_up_rows(batch, args.hidden_states, args.output.data, args.output.type);
}

void CudaExperts::down(const ops::DownArgs& args, Workspace workspace, Stream stream) const {
  const DeviceScope scope(device_);
  require_reachable("intermediate", args.intermediate);
  require_reachable("output", args.output);
  require_reachable("workspace", TensorView{.data = workspace.data});
  const int64_t num_tokens = args.intermediate.extent(0);
  const GemmRowMap map = sorted_map(args, num_tokens);
  if (tuned_ &&
      tuned_->run_stage(
          {.is_down = true, .map = map, .input = args.intermediate, .output = args.output},
          workspace, stream)) {
    return;
  }
  const Batch batch{.map = map,
                    .layout = layout(num_tokens, args.top_k),
                    .workspace = workspace,
                    .stream = stream};
  GemmJob job = down_job(batch, args.intermediate);
  job.output = args.output.data;
  job.output_type = args.output.type;
  grouped_gemm(job, stream);
}

void CudaExperts::run_chosen(const ops::DenseArgs& args, const ExpertsWorkspace& layout,
                             Workspace workspace, Stream stream) const {
  const int64_t num_tokens = args.hidden_states.extent(0);
  const AlphaChoiceJob job{.alpha = args.alpha.as<const float>(),
                           .num_tokens = num_tokens,
                           .num_experts = static_cast<int32_t>(spec_.num_experts),
                           .top_k = static_cast<int32_t>(spec_.top_k),
                           .topk_ids = layout.topk_ids.in<int32_t>(workspace),
                           .topk_weights = layout.topk_weights.in<float>(workspace),
                           .crowded = layout.crowded.in<int32_t>(workspace)};
  choose_by_alpha(job, stream);
  const auto of_tokens = [&](void* data, DataType type) {
    return TensorView::contiguous(data, type, {num_tokens, spec_.top_k});
  };
  tuned_->run({.hidden_states = args.hidden_states,
               .topk_ids = of_tokens(job.topk_ids, DataType::kI32),
               .topk_weights = of_tokens(job.topk_weights, DataType::kF32),
               .output = args.output},
              {static_cast<std::byte*>(workspace.data) + layout.tuned_begin,
               workspace.bytes - layout.tuned_begin},
              stream);
}

/// Alphas are mostly 0 where they come from a router, and then a layer's kernels take the tokens:
/// each reads an expert that any token uses once, too. The generic kernels take a token with more
/// than top_k experts, with exact activations whatever the spec's format, because rounding would
/// differ by expert where channel scales do.
void CudaExperts::dense(const ops::DenseArgs& args, Workspace workspace, Stream stream) const {
  const DeviceScope scope(device_);
  require_reachable("hidden_states", args.hidden_states);
  require_reachable("output", args.output);
  require_reachable("workspace", TensorView{.data = workspace.data});
  const int64_t num_tokens = args.hidden_states.extent(0);
  if (num_tokens == 0) return;
  const ExpertsWorkspace places = layout(num_tokens, spec_.top_k);
  const int64_t experts = spec_.num_experts;
  const bool on_input = spec_.weight_position == WeightPosition::kInput;
  const bool chosen = tuned_ && on_16_bytes(args.hidden_states) && on_16_bytes(args.output) &&
                      tuned_->why_unsupported(args.hidden_states.type, args.output.type) == nullptr;
  if (chosen) run_chosen(args, places, workspace, stream);
  if (chosen && spec_.top_k >= experts) return;  // nobody has more
  for (int64_t begin = 0; begin < num_tokens; begin += kDenseTokens) {
    const int64_t count = std::min<int64_t>(kDenseTokens, num_tokens - begin);
    GemmRowMap map{.num_experts = static_cast<int32_t>(experts),
                   .alpha = args.alpha.as<const float>() + begin * experts,
                   .alpha_stride = experts};
    if (chosen) map.wanted = places.crowded.in<const int32_t>(workspace) + begin;
    map.tokens.limit = count;
    void* hidden = places.hidden.in(workspace);
    grouped_gemm({.map = map,
                  .input = plain_rows(rows_of(args.hidden_states, begin, count)),
                  .weights = gate_up_.rows(),
                  .activation = &spec_.activation,
                  .weight_before_bias = on_input,
                  .output = hidden},
                 stream);
    const TensorView output = rows_of(args.output, begin, count);
    grouped_gemm({.map = map,
                  .input = plain_rows(TensorView::contiguous(
                      hidden, DataType::kF32, {experts * count, spec_.intermediate_size})),
                  .input_per_pair = true,
                  .weights = down_.rows(),
                  .weight_before_bias = on_input,
                  .sum_over_experts = true,
                  .output = output.data,
                  .output_type = output.type},
                 stream);
  }
}

void CudaExperts::plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
                       Plan& plan) const {
  if (tuned_) {
    const size_t begin = plan.steps.size();
    tuned_->plan(num_tokens, top_k, limits, plan);
    for (size_t i = begin; i < plan.steps.size(); ++i) {
      PlanStep& step = plan.steps[i];
      const PackedMatrices* weights = step.step == "gate_up" ? &gate_up_
                                      : step.step == "down"  ? &down_
                                                             : nullptr;
      const std::string spread = weights == nullptr ? "" : to_string(weights->spread());
      if (!spread.empty()) step.why += "; " + spread;
      if (weights != nullptr && weights->rows().rows.format == Format::kNvfp4 &&
          weights->rows().fragments.order == FragmentOrder::kFp8) {
        step.why += "; NVFP4 weights rounded to E4M3, each by at most 1/21";
      }
    }
    return;
  }
  const double touched = expected_distinct_experts(spec_.num_experts, top_k, num_tokens) /
                         static_cast<double>(spec_.num_experts);
  const auto pairs = static_cast<double>(num_tokens * top_k);
  const auto width = static_cast<double>(spec_.expert_width());
  const auto inner = static_cast<double>(spec_.intermediate_size);
  const SortPlan sort_plan = plan_sort(std::min(num_tokens, chunk_tokens(num_tokens, top_k)), top_k,
                                       spec_.num_experts, kGemmRowsDecode);
  const auto add = [&](const char* step, const char* kernel, const std::string& why, double bytes,
                       double flops) {
    plan.steps.push_back(
        {.step = step,
         .kernel = kernel,
         .why = why,
         .bytes = bytes,
         .flops = flops,
         .predicted_us = predict_us(bytes, flops, limits.read_gbps, limits.f32_gflops)});
  };
  const bool chunked = sort_plan.path == SortPath::kChunked;
  add("sort", sort_kernels(sort_plan),
      !chunked ? "few pairs: every block ranks them all and writes its share"
               : "chunks of tokens, counted by one kernel and placed by the next",
      pairs * 16, 0);
  const std::string why = "f32 tiles, any format and shape: " + why_not_tuned_;
  const double matrices = spec_.activation.gated() ? 2 : 1;
  add("gate_up", "grouped_gemm", why,
      touched * static_cast<double>(gate_up_.bytes()) + pairs * (inner + width) * 4,
      2 * matrices * pairs * width * inner);
  add("down", "grouped_gemm", why,
      touched * static_cast<double>(down_.bytes()) + pairs * (inner + width) * 4,
      2 * pairs * width * inner);
  add("combine", "combine", "f32 sum in slot order", pairs * width * 4, 2 * pairs * width);
}

}  // namespace switchyard::cuda
