#include "cuda/sm90/decode_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/cost_model.h"
#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "core/token_rows.h"
#include "cuda/check.h"
#include "cuda/combine.h"
#include "cuda/quantize.h"
#include "cuda/route_sort.h"
#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/reencode_rows.h"
#include "cuda/sm90/route_sort.h"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int64_t kScaleColumns = 128;

/// Scales of 128-column blocks that all rows of a 64-row block share, gate and up apart.
bool block_scales(const LayerSpec& spec) {
  return spec.weight_scale_block == ScaleBlock{128, kScaleColumns};
}

/// Whether weights in fragment_order() have a decode kernel for these activations.
bool meets_decode(const WeightRows& w, ActivationFormat activations) {
  switch (activations) {
    case ActivationFormat::kNone: return w.fragments.order == FragmentOrder::kBf16;
    case ActivationFormat::kMxfp8:
    case ActivationFormat::kMxfp4: return w.smooth_scales == nullptr;
    case ActivationFormat::kFp8PerTensor:
    case ActivationFormat::kFp8PerToken:
    case ActivationFormat::kFp8Block128: return w.fragments.order == FragmentOrder::kFp8;
    case ActivationFormat::kInt8PerToken: return w.fragments.order == FragmentOrder::kInt8;
    default: return false;
  }
}

std::string why_unsupported_fragments(ActivationFormat activations, const PackedMatrices& packed) {
  const WeightRows& w = packed.rows();
  const FragmentOrder order = w.fragments.order;
  if (!meets_decode(w, activations)) return "no decode kernel for these activations";
  if (packed.spread().wide == 0) return {};
  if (w.rows.format == Format::kInt4) {
    return fmt::format("{} groups have zero points above {}, too large for exact E4M3 numbers",
                       packed.spread().wide, kMostInt4Fp8Zero);
  }
  return fmt::format(
      "{} weight rows have scales more than 2^{} apart, too far for exact {} numbers",
      packed.spread().wide, max_steps_down(order), order == FragmentOrder::kBf16 ? "bf16" : "E4M3");
}

std::string why_unsupported_matrix(const LayerSpec& spec, ActivationFormat activations,
                                   const PackedMatrices& packed) {
  const WeightRows& w = packed.rows();
  if (w.smooth_scales != nullptr && activations == ActivationFormat::kNone) {
    return "smooth scales are applied where activations are quantised";
  }
  if (w.num_cols % 16 != 0 || w.num_rows % 16 != 0) {
    return fmt::format("a matrix of {} x {}; decode kernels need multiples of 16", w.num_rows,
                       w.num_cols);
  }
  const bool fragments = w.fragments.order != FragmentOrder::kRowMajor;
  const DecodeSteps steps =
      fragments ? decode_fragment_steps(w.fragments.col_blocks, kDecodeChunkFragments)
                : decode_steps(w.rows.row_bytes);
  const int64_t units =
      ceil_div<int64_t>(w.num_rows, kDecodeRows) * steps.num_chunks() * kDecodeMaxTokens * kMaxTopK;
  if (units > std::numeric_limits<int32_t>::max()) {
    return fmt::format("a matrix of {} x {}; decode kernels count its units in 32 bits", w.num_rows,
                       w.num_cols);
  }
  if (fragments) return why_unsupported_fragments(activations, packed);
  if (w.group_index != nullptr || w.zero_points != nullptr || w.global_scales != nullptr ||
      (w.rows.scale_kind != ScaleKind::kNone && w.rows.scale_kind != ScaleKind::kF32)) {
    return "no decode kernel for these scales";
  }
  const bool per_row = w.rows.num_groups == 1;
  switch (w.rows.format) {
    case Format::kBf16:
      if (activations == ActivationFormat::kNone && w.rows.scale_kind == ScaleKind::kNone) {
        return {};
      }
      break;
    case Format::kFp8E4m3: {
      const bool fp8 = activations == ActivationFormat::kFp8PerTensor ||
                       activations == ActivationFormat::kFp8PerToken;
      const bool blocks = activations == ActivationFormat::kFp8Block128;
      if (block_scales(spec) ? fp8 || blocks : fp8 && per_row) return {};
      break;
    }
    case Format::kInt8: {
      const bool int8 = activations == ActivationFormat::kInt8PerToken ||
                        activations == ActivationFormat::kInt8PerSlot;
      if (int8 && per_row) return {};
      break;
    }
    default: break;
  }
  return "no decode kernel for these formats";
}

}  // namespace

struct DecodeExperts::NumberPlaces {
  WorkspaceRegion values, row_scales;
};

struct DecodeExperts::Places {
  int32_t unit_size = 0;
  int64_t sorted_rows = 0;
  int64_t num_warpgroups = 0;
  WorkspaceRegion sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, sort_scratch;
  /// Of cuts in gate_up and in down; then RowMaxima of the hidden rows.
  WorkspaceRegion counters;
  WorkspaceRegion partials;
  WorkspaceRegion token_codes, token_scales;
  WorkspaceRegion hidden, hidden_codes, hidden_scales;
  NumberPlaces token_numbers, hidden_numbers;
  WorkspaceRegion expert_output;
  int64_t bytes = 0;
};

struct DecodeExperts::Batch {
  RunExpertsArgs args{};  ///< of these tokens
  int64_t begin = 0;      ///< tokens before them
  Places places{};
  Workspace workspace{};
  Stream stream{};

  int64_t num_tokens() const { return args.hidden_states.extent(0); }
  /// No choice: every token takes expert 0.
  bool single_expert() const { return args.topk_ids.empty(); }
  int64_t top_k() const { return top_k_of(args.topk_ids); }
  /// Its tokens have as many experts as choices.
  bool routes() const { return args.route != nullptr && !args.route->spec.hash; }
  bool single_token() const { return routes() && num_tokens() == 1 && args.num_tokens.empty(); }
  TokenCount tokens() const {
    return {
        .limit = num_tokens(), .on_device = args.num_tokens.as<const int32_t>(), .skipped = begin};
  }
};

std::string DecodeExperts::why_unsupported(const LayerSpec& spec, const PackedMatrices& gate_up,
                                           const PackedMatrices& down) {
  const ActivationFormat activations = resolved_activation_format(spec, BackendKind::kCuda);
  std::string why = why_unsupported_matrix(spec, activations, gate_up);
  return why.empty() ? why_unsupported_matrix(spec, activations, down) : why;
}

DecodeExperts::DecodeExperts(const LayerSpec& spec, const PackedMatrices& gate_up,
                             const PackedMatrices& down, int device, int num_ctas)
    : spec_(spec),
      activations_(resolved_activation_format(spec, BackendKind::kCuda)),
      device_(device),
      num_ctas_(num_ctas > 0 ? num_ctas : device_facts(device).num_sms),
      gate_up_(matrix_of(gate_up)),
      down_(matrix_of(down)) {}

DecodeExperts::Matrix DecodeExperts::matrix_of(const PackedMatrices& packed) const {
  const WeightRows& w = packed.rows();
  if (w.fragments.order != FragmentOrder::kRowMajor) {
    return {.packed = &packed,
            .fragments = decode_fragment_args(packed),
            .steps = decode_fragment_steps(w.fragments.col_blocks, kDecodeChunkFragments)};
  }
  const Format format = w.rows.format;
  const DecodeOperand operand = format == Format::kBf16   ? DecodeOperand::kBf16
                                : format == Format::kInt8 ? DecodeOperand::kInt8
                                : block_scales(spec_)     ? DecodeOperand::kFp8Block128
                                                          : DecodeOperand::kFp8;
  return {.packed = &packed,
          .operand = operand,
          .map = decode_weight_map(w, spec_.num_experts),
          .steps = decode_steps(int64_t{w.num_cols} * element_bits(format) / 8)};
}

const char* DecodeExperts::why_unsupported(DataType hidden_states) const {
  return quantised() || hidden_states == DataType::kBf16 ? nullptr
                                                         : "bf16 weights meet bf16 hidden states";
}

DecodeExperts::Places DecodeExperts::places(int64_t num_tokens, int64_t top_k) const {
  const int64_t inner = spec_.intermediate_size;
  const int64_t width = spec_.expert_width();
  const int64_t pairs = num_tokens * top_k;
  Places p;
  p.unit_size = decode_unit_size(num_tokens, top_k, spec_.num_experts);
  const int64_t warpgroups = num_ctas_ * decode_lanes(p.unit_size) * decode_team(p.unit_size);
  p.num_warpgroups = warpgroups;
  p.sorted_rows = sort_capacity(num_tokens, top_k, spec_.num_experts, p.unit_size);
  WorkspaceCarver carver;
  p.sorted_ids = carver.take(p.sorted_rows * 4);
  p.sorted_weights = carver.take(p.sorted_rows * 4);
  p.sorted_expert_ids = carver.take(p.sorted_rows / p.unit_size * 4);
  p.num_valid_ids = carver.take(8);
  p.sort_scratch = carver.take(sort_scratch_bytes(num_tokens, top_k, spec_.num_experts));
  const ActivationStorage storage = activation_storage(activations_);
  const int64_t maxima = quantised() ? pairs * scale_cols(storage.scale_block, inner) : 0;
  p.counters = carver.take(align_up<int64_t>((2 * warpgroups + maxima) * 4, 16));
  const int64_t chunks = std::max(gate_up_.steps.num_chunks(), down_.steps.num_chunks());
  p.partials = carver.take(decode_partial_bytes(warpgroups, chunks, p.unit_size));
  if (quantised()) {
    const bool per_pair = gate_up_.packed->has_smooth_scales();
    take_codes(carver, per_pair ? pairs : num_tokens, width, p.token_codes, p.token_scales);
    take_codes(carver, pairs, inner, p.hidden_codes, p.hidden_scales);
    p.token_numbers = take_numbers(carver, num_tokens, width);
    p.hidden_numbers = take_numbers(carver, pairs, inner);
  }
  p.hidden = carver.take(pairs * inner * (quantised() ? 4 : 2));
  p.expert_output = carver.take(pairs * width * 4);
  p.bytes = carver.bytes();
  return p;
}

int64_t DecodeExperts::workspace_bytes(int64_t max_tokens, int64_t top_k) const {
  // Fewer tokens can have more bytes of lists: their tiles are smaller.
  int64_t bytes = 0;
  const int64_t most = std::min(max_tokens, decode_pass_tokens(top_k, spec_.num_experts));
  for (int64_t t = 1; t < most; t *= 2) bytes = std::max(bytes, places(t, top_k).bytes);
  return std::max(bytes, places(most, top_k).bytes);
}

DecodeArgs DecodeExperts::sort_batch(const Batch& batch) const {
  const Places& p = batch.places;
  SortJob job{.topk_ids = batch.args.topk_ids.as<const int32_t>(),
              .topk_weights = batch.args.topk_weights.as<const int32_t>(),
              .tokens = batch.tokens(),
              .top_k = static_cast<int32_t>(batch.top_k()),
              .num_experts = static_cast<int32_t>(spec_.num_experts),
              .unit_size = p.unit_size,
              .capacity = static_cast<int32_t>(p.sorted_rows),
              .num_blocks = static_cast<int32_t>(p.sorted_rows / p.unit_size),
              .num_valid = 1,
              .sorted_ids = p.sorted_ids.in<int32_t>(batch.workspace),
              .sorted_weights = p.sorted_weights.in<int32_t>(batch.workspace),
              .sorted_expert_ids = p.sorted_expert_ids.in<int32_t>(batch.workspace),
              .num_valid_ids = p.num_valid_ids.in<int32_t>(batch.workspace),
              .zeroed = p.counters.in(batch.workspace),
              .zeroed_bytes = p.counters.bytes};
  const RoundJob round = round_job(batch);
  bool lists_ready = false;
  if (batch.single_expert()) {
    decode_single_expert(job, round, batch.stream);
  } else if (batch.args.route != nullptr) {
    route_sort(route_job(*batch.args.route), job, round, batch.stream, batch.single_token());
  } else {
    route_and_sort(nullptr, job, p.sort_scratch.in(batch.workspace), device_, batch.stream);
    lists_ready = round.from != nullptr;
    if (lists_ready) decode_quantize(round, batch.stream);
  }
  // Experts that the caller or a table chose may come twice for one token.
  const bool distinct = batch.routes();
  const auto num_tokens = static_cast<int32_t>(batch.num_tokens());
  return {.sorted_ids = job.sorted_ids,
          .sorted_expert_ids = job.sorted_expert_ids,
          .num_valid_ids = job.num_valid_ids,
          .unit_size = p.unit_size,
          .top_k = job.top_k,
          .num_tokens = num_tokens,
          .expert_rows = distinct ? num_tokens : num_tokens * job.top_k,
          .single_token = batch.single_token(),
          .lists_ready = lists_ready,
          .partials = p.partials.in<uint32_t>(batch.workspace),
          .counters = p.counters.in<uint32_t>(batch.workspace)};
}

void DecodeExperts::take_codes(WorkspaceCarver& carver, int64_t rows, int64_t cols,
                               WorkspaceRegion& codes, WorkspaceRegion& scales) const {
  const ActivationStorage storage = activation_storage(activations_);
  codes = carver.take(rows * padded_row_bytes(storage.format, cols));
  scales = carver.take(scale_rows(storage.scale_block, rows) *
                       scale_cols(storage.scale_block, cols) * 4);
}

DecodeExperts::NumberPlaces DecodeExperts::take_numbers(WorkspaceCarver& carver, int64_t rows,
                                                        int64_t cols) const {
  if (!converted()) return {};
  return {.values = carver.take(rows * number_row_bytes(cols)),
          .row_scales = carver.take(expanded() ? 0 : rows * 4)};
}

void DecodeExperts::set_codes(const RoundedRows& rows, const NumberPlaces& numbers,
                              Workspace workspace, DecodeArgs& args) const {
  if (converted()) {
    args.tokens = numbers.values.in(workspace);
    args.token_bytes = rows.num_columns * (expanded() ? 2 : 1);
    args.token_row_bytes = number_row_bytes(rows.num_columns);
    if (!expanded()) args.token_scales = numbers.row_scales.in<const float>(workspace);
    return;
  }
  args.tokens = rows.codes;
  args.token_row_bytes = rows.row_bytes;
  args.token_bytes = rows.num_columns;
  args.token_scales = rows.scales;
}

void DecodeExperts::quantize_input(const Batch& batch, const TensorView& input,
                                   const Matrix& matrix, const RoundedRows& to, bool per_pair,
                                   const DecodeArgs& lists) const {
  QuantizeJob job{.input = input.data,
                  .input_type = input.type,
                  .num_input_rows = input.extent(0),
                  .cols = to.num_columns,
                  .rows = batch.tokens(),
                  .channel_scale = matrix.packed->rows().smooth_scales,
                  .channel_scale_stride = to.num_columns,
                  .format = to.format,
                  .scale_block = activation_storage(activations_).scale_block,
                  .values = to.codes,
                  .value_row_bytes = to.row_bytes,
                  .scales = to.scales,
                  .scale_type = converted() ? DataType::kF8E8m0 : DataType::kF32};
  if (per_pair ||
      job.channel_scale != nullptr) {  // only pairs that exist: the others hold anything
    job.sorted_ids = lists.sorted_ids;
    job.sorted_expert_ids = lists.sorted_expert_ids;
    job.num_valid_ids = lists.num_valid_ids;
    job.num_sorted = batch.places.sorted_rows;
    job.unit_size = lists.unit_size;
    job.top_k = lists.top_k;
    job.input_per_pair = per_pair;
  }
  quantize(job, batch.stream);
  if (!converted()) return;
  const NumberPlaces& numbers = per_pair ? batch.places.hidden_numbers : batch.places.token_numbers;
  const auto convert = expanded() ? expand_rows : reencode_rows;
  convert(
      {.format = to.format,
       .codes = to.codes,
       .code_row_bytes = to.row_bytes,
       .scales = static_cast<const uint8_t*>(job.scales),
       .cols = to.num_columns,
       .rows = per_pair ? TokenCount{.limit = batch.num_tokens() * lists.top_k} : batch.tokens(),
       .values = numbers.values.in<uint8_t>(batch.workspace),
       .value_row_bytes = number_row_bytes(to.num_columns),
       .row_scales = numbers.row_scales.in<float>(batch.workspace)},
      batch.stream);
}

void DecodeExperts::set_tokens(const Batch& batch, DecodeArgs& args) const {
  const TensorView& input = batch.args.hidden_states;
  const int64_t cols = input.extent(1);
  args.tokens = input.data;
  args.token_row_bytes = cols * element_bytes(input.type);
  args.token_bytes = static_cast<int32_t>(args.token_row_bytes);
  if (!quantised()) return;
  const RoundedRows codes = rounded_tokens(batch);
  set_codes(codes, batch.places.token_numbers, batch.workspace, args);
  args.tokens_per_pair = gate_up_.packed->has_smooth_scales();
  args.token_scale_groups = scale_groups(cols);
  if (!rounds_tokens()) quantize_input(batch, input, gate_up_, codes, false, args);
}

RoundedRows DecodeExperts::rounded_tokens(const Batch& batch) const {
  return rounded_rows(spec_.expert_width(), batch.places.token_codes.in(batch.workspace),
                      batch.places.token_scales.in(batch.workspace));
}

RoundJob DecodeExperts::round_job(const Batch& batch) const {
  if (!rounds_tokens()) return {};
  const TensorView& input = batch.args.hidden_states;
  return {
      .to = rounded_tokens(batch), .from = input.data, .type = input.type, .rows = batch.tokens()};
}

void DecodeExperts::set_hidden(const Batch& batch, DecodeArgs& gate_up, DecodeArgs& down) const {
  const int64_t cols = spec_.intermediate_size;
  gate_up.output = batch.places.hidden.in(batch.workspace);
  gate_up.output_type = quantised() ? DataType::kF32 : DataType::kBf16;
  gate_up.output_columns = static_cast<int32_t>(cols);
  down.lists_ready = true;
  down.tokens_per_pair = true;
  down.tokens = gate_up.output;
  down.token_row_bytes = cols * 2;
  down.token_bytes = static_cast<int32_t>(cols * 2);
  if (!quantised()) return;
  down.token_scale_groups = scale_groups(cols);
  gate_up.rounded_channels = down_.packed->rows().smooth_scales;
  if (rounds_while_read(batch)) {
    down.token_row_bytes = cols * 4;
    down.token_bytes = static_cast<int32_t>(cols);
    down.token_maxima =
        gate_up.maxima = {.bits = gate_up.counters + 2 * batch.places.num_warpgroups,
                          .groups = down.token_scale_groups,
                          .format = activation_storage(activations_).format};
    return;
  }
  const RoundedRows codes = rounded_rows(cols, batch.places.hidden_codes.in(batch.workspace),
                                         batch.places.hidden_scales.in(batch.workspace));
  set_codes(codes, batch.places.hidden_numbers, batch.workspace, down);
}

bool DecodeExperts::rounds_while_read(const Batch& batch) const {
  if (one_scale() || converted() || batch.places.unit_size > 8) return false;
  if (down_.steps.num_steps == 1) return true;  // rows stay in shared memory
  // Every load of a lane rounds its rows again. gpt-oss-120b FP8: at 2 loads (T = 1) a launch is
  // saved, 14 (T = 8) are even, 55 (T = 64) take 76 us more.
  constexpr double kMostLoads = 12;
  const double blocks =
      expected_distinct_experts(spec_.num_experts, batch.top_k(), batch.num_tokens());
  const double loads = blocks * ceil_div(down_.packed->rows().num_rows, kDecodeRows) *
                       down_.steps.num_steps / static_cast<double>(batch.places.num_warpgroups);
  return loads <= kMostLoads;
}

RoundedRows DecodeExperts::rounded_rows(int64_t cols, void* codes, void* scales) const {
  const ActivationStorage storage = activation_storage(activations_);
  return {.codes = static_cast<uint8_t*>(codes),
          .row_bytes = padded_row_bytes(storage.format, cols),
          .scales = static_cast<float*>(scales),
          .num_columns = static_cast<int32_t>(cols),
          .group_columns = static_cast<int32_t>(storage.scale_block.cols),
          .format = storage.format};
}

int32_t DecodeExperts::scale_groups(int64_t cols) const {
  if (one_scale()) return 0;
  if (converted()) return 1;
  return static_cast<int32_t>(scale_cols(activation_storage(activations_).scale_block, cols));
}

void DecodeExperts::set_weights(const Matrix& matrix, DecodeArgs& args) const {
  const WeightRows& w = matrix.packed->rows();
  const bool fragments = w.fragments.order != FragmentOrder::kRowMajor;
  args.row_scales = fragments ? w.row_scales : static_cast<const float*>(w.rows.scales);
  args.row_scale_groups = fragments ? 1 : w.rows.num_groups;
  args.bias = w.bias;
  args.num_rows = w.num_rows;
  args.steps = matrix.steps;
}

void DecodeExperts::multiply(const Matrix& matrix, const DecodeArgs& args, Stream stream) const {
  const FragmentOrder order = matrix.packed->rows().fragments.order;
  if (order == FragmentOrder::kRowMajor) {
    return decode_gemm(matrix.operand, matrix.map, args, num_ctas_, stream);
  }
  decode_fragments(order, matrix.fragments, args, num_ctas_, stream);
}

void DecodeExperts::run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const {
  const int64_t num_tokens = args.hidden_states.extent(0);
  const int64_t top_k = top_k_of(args.topk_ids);
  const int64_t pass = decode_pass_tokens(top_k, spec_.num_experts);
  for (int64_t begin = 0; begin < num_tokens; begin += pass) {
    const int64_t count = std::min(pass, num_tokens - begin);
    Batch batch{.args = {.hidden_states = rows_of(args.hidden_states, begin, count),
                         .topk_ids = rows_of(args.topk_ids, begin, count),
                         .topk_weights = rows_of(args.topk_weights, begin, count),
                         .addend = rows_of(args.addend, begin, count),
                         .num_tokens = args.num_tokens,
                         .output = rows_of(args.output, begin, count),
                         .route = args.route},
                .begin = begin,
                .workspace = workspace,
                .stream = stream};
    batch.places = places(count, batch.top_k());
    run_batch(batch);
  }
}

bool DecodeExperts::sums_one_token() const {
  const int32_t rows = down_.packed->rows().num_rows;
  const int32_t ctas = decode_sum_ctas(rows, num_ctas_) * ceil_div(rows, kDecodeRows);
  return ctas * 3 >= num_ctas_ * 2;
}

void DecodeExperts::run_batch(const Batch& batch) const {
  const RunExpertsArgs& args = batch.args;
  const Workspace workspace = batch.workspace;
  const Stream stream = batch.stream;
  const int64_t top_k = batch.top_k();
  const int64_t pairs = batch.num_tokens() * top_k;
  const DecodeArgs lists = sort_batch(batch);
  const auto* sorted_weights =
      args.topk_weights.empty() ? nullptr : batch.places.sorted_weights.in<const float>(workspace);
  const bool on_input = spec_.weight_position == WeightPosition::kInput;

  DecodeArgs first = lists, second = lists;
  set_weights(gate_up_, first);
  first.sorted_weights = on_input ? sorted_weights : nullptr;
  first.weight_before_bias = on_input;
  first.activate = true;
  first.activation = spec_.activation;
  set_weights(down_, second);
  second.sorted_weights = on_input ? nullptr : sorted_weights;
  // One row per token, nothing to add: down writes the result.
  const bool direct = batch.single_expert() && args.addend.empty();
  second.output = direct ? args.output.data : batch.places.expert_output.in(workspace);
  second.output_type = direct ? args.output.type : DataType::kF32;
  second.output_columns = static_cast<int32_t>(spec_.expert_width());
  second.counters = lists.counters + batch.places.num_warpgroups;

  const bool sums = !direct && batch.single_token() && sums_one_token();
  if (sums) {
    second.sum = {.output = args.output.data,
                  .output_type = args.output.type,
                  .addend = args.addend.as<const float>()};
  }

  set_tokens(batch, first);
  set_hidden(batch, first, second);
  multiply(gate_up_, first, stream);
  if (quantised() && !rounds_while_read(batch)) {
    const TensorView hidden =
        TensorView::contiguous(first.output, first.output_type, {pairs, spec_.intermediate_size});
    quantize_input(batch, hidden, down_,
                   rounded_rows(spec_.intermediate_size, batch.places.hidden_codes.in(workspace),
                                batch.places.hidden_scales.in(workspace)),
                   true, lists);
  }
  multiply(down_, second, stream);
  if (direct || sums) return;
  combine({.expert_output = second.output,
           .last_reader = true,
           .topk_ids = args.topk_ids.as<const int32_t>(),
           .ids_ready = true,
           .num_experts = static_cast<int32_t>(spec_.num_experts),
           .addend = args.addend.data,
           .tokens = batch.tokens(),
           .top_k = static_cast<int32_t>(top_k),
           .width = spec_.expert_width(),
           .output = args.output.data,
           .output_type = args.output.type},
          stream);
}

DecodeExperts::Places DecodeExperts::stage_places(int64_t num_tokens, int64_t top_k,
                                                  int32_t unit_size, bool is_down) const {
  const Matrix& matrix = is_down ? down_ : gate_up_;
  const int64_t cols = matrix.packed->rows().num_cols;
  Places p;
  p.unit_size = unit_size;
  p.num_warpgroups = num_ctas_ * decode_lanes(unit_size) * decode_team(unit_size);
  WorkspaceCarver carver;
  p.counters = carver.take(p.num_warpgroups * 4);
  p.partials =
      carver.take(decode_partial_bytes(p.num_warpgroups, matrix.steps.num_chunks(), unit_size));
  if (!quantised()) {
    p.bytes = carver.bytes();
    return p;
  }
  const bool per_pair = is_down || matrix.packed->has_smooth_scales();
  const int64_t rows = per_pair ? num_tokens * top_k : num_tokens;
  take_codes(carver, rows, cols, p.token_codes, p.token_scales);
  p.token_numbers = p.hidden_numbers = take_numbers(carver, rows, cols);
  p.bytes = carver.bytes();
  return p;
}

int64_t DecodeExperts::stage_workspace_bytes(int64_t max_tokens, int64_t top_k) const {
  int64_t bytes = 0;
  for (int32_t unit = 8; unit <= kDecodeMaxUnit; unit *= 2) {
    for (const bool is_down : {false, true}) {
      bytes = std::max(bytes, stage_places(max_tokens, top_k, unit, is_down).bytes);
    }
  }
  return bytes;
}

bool DecodeExperts::run_stage(const StageJob& job, Workspace workspace, Stream stream) const {
  const int32_t unit = job.map.unit_size;
  if (unit < 8 || unit > kDecodeMaxUnit || (unit & (unit - 1)) != 0) return false;
  if (why_unsupported(job.input.type) != nullptr) return false;
  const Matrix& matrix = job.is_down ? down_ : gate_up_;
  const int64_t units = int64_t{job.map.num_blocks} *
                        ceil_div(matrix.packed->rows().num_rows, kDecodeRows) *
                        matrix.steps.num_chunks();
  if (units > std::numeric_limits<int32_t>::max()) return false;  // counted in 32 bits
  const int64_t num_tokens = job.input.extent(0);
  const int64_t cols = matrix.packed->rows().num_cols;
  Batch batch{.args = {.hidden_states = job.input}, .workspace = workspace, .stream = stream};
  batch.places = stage_places(num_tokens, job.map.top_k, unit, job.is_down);
  batch.places.sorted_rows = int64_t{job.map.num_blocks} * unit;
  const Places& p = batch.places;
  DecodeArgs args{.sorted_ids = job.map.sorted_ids,
                  .sorted_expert_ids = job.map.sorted_expert_ids,
                  .num_valid_ids = job.map.num_valid_ids,
                  .unit_size = unit,
                  .top_k = job.map.top_k,
                  .num_tokens = static_cast<int32_t>(num_tokens),
                  .tokens = job.input.data,
                  .token_row_bytes = cols * element_bytes(job.input.type),
                  .token_bytes = static_cast<int32_t>(cols * element_bytes(job.input.type)),
                  .tokens_per_pair = job.is_down || matrix.packed->has_smooth_scales(),
                  .output = job.output.data,
                  .output_type = job.output.type,
                  .output_columns = static_cast<int32_t>(job.output.extent(2)),
                  .partials = p.partials.in<uint32_t>(workspace),
                  .counters = p.counters.in<uint32_t>(workspace)};
  set_weights(matrix, args);
  const bool on_input = spec_.weight_position == WeightPosition::kInput;
  if (on_input != job.is_down) args.sorted_weights = job.map.sorted_weights;
  if (!job.is_down) {
    args.weight_before_bias = on_input;
    args.activate = true;
    args.activation = spec_.activation;
  }
  check(cudaMemsetAsync(args.counters, 0, static_cast<size_t>(p.counters.bytes),
                        static_cast<cudaStream_t>(stream.handle)),
        "cudaMemsetAsync");
  if (quantised()) {
    const RoundedRows codes =
        rounded_rows(cols, p.token_codes.in(workspace), p.token_scales.in(workspace));
    set_codes(codes, p.token_numbers, workspace, args);
    args.token_scale_groups = scale_groups(cols);
    const TensorView rows = TensorView::contiguous(job.input.data, job.input.type,
                                                   {job.input.num_elements() / cols, cols});
    quantize_input(batch, rows, matrix, codes, job.is_down, args);
  }
  multiply(matrix, args, stream);
  return true;
}

void DecodeExperts::plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
                         Plan& plan) const {
  const int64_t pass = std::min(num_tokens, decode_pass_tokens(top_k, spec_.num_experts));
  const auto passes = static_cast<double>(ceil_div(num_tokens, std::max<int64_t>(pass, 1)));
  const double touched = passes * expected_distinct_experts(spec_.num_experts, top_k, pass) /
                         static_cast<double>(spec_.num_experts);
  const auto pairs = static_cast<double>(num_tokens * top_k);
  const auto width = static_cast<double>(spec_.expert_width());
  const auto inner = static_cast<double>(spec_.intermediate_size);
  const double gflops =
      activations_ == ActivationFormat::kNone ? limits.bf16_gflops : limits.fp8_gflops;
  const auto add = [&](const char* step, const std::string& kernel, const std::string& why,
                       double bytes, double flops) {
    plan.steps.push_back({.step = step,
                          .kernel = kernel,
                          .why = why,
                          .bytes = bytes,
                          .flops = flops,
                          .predicted_us = predict_us(bytes, flops, limits.read_gbps, gflops)});
  };
  const int32_t unit = decode_unit_size(pass, top_k, spec_.num_experts);
  const std::string kernel = fmt::format("sm90_decode_{}", unit);
  const std::string why =
      fmt::format("weights streamed in equal shares of all SMs, {:.0f} pass{}, tiles of {} tokens",
                  passes, passes == 1 ? "" : "es", unit);
  const double matrices = spec_.activation.gated() ? 2 : 1;
  add("sort", sort_kernels(plan_sort(pass, top_k, spec_.num_experts, unit)),
      "few pairs: every block ranks them all and writes its share", pairs * 16, 0);
  add("gate_up", kernel, why,
      touched * static_cast<double>(gate_up_.packed->bytes()) + pairs * (inner + width) * 2,
      2 * matrices * pairs * width * inner);
  add("down", kernel, why,
      touched * static_cast<double>(down_.packed->bytes()) + pairs * (inner + width) * 4,
      2 * pairs * width * inner);
  const bool down_sums = num_tokens == 1 && sums_one_token();
  add("combine", "combine",
      down_sums ? "f32 sum in slot order; part of down where the layer routes"
                : "f32 sum in slot order",
      pairs * width * 4, 2 * pairs * width);
}

}  // namespace switchyard::cuda::sm90
