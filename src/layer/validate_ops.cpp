// Checks of the ops: every tensor against the sizes that the others give.

#include <cmath>

#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "layer/check.h"
#include "layer/validate.h"
#include "layer/validate_matrix.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxUnitSize = 4096;
constexpr int64_t kMaxPairs = (int64_t{1} << 31) - 1;  // row indices are i32

constexpr Types kI32 = {DataType::kI32};
constexpr Types kF32 = {DataType::kF32};

void check_sizes(int64_t num_tokens, int64_t top_k) {
  check_range("tokens", num_tokens, 0, kMaxTokens);
  check_range("top_k", top_k, 1, kMaxTopK);
  require(num_tokens * top_k <= kMaxPairs, "tokens x top_k is {}; it must be at most {}",
          num_tokens * top_k, kMaxPairs);
}

/// Rank 1 with at least `least` elements.
void check_at_least(const char* name, const TensorView& tensor, Types types, int64_t least) {
  check_tensor(name, tensor, types, {kAnyExtent});
  require(tensor.extent(0) >= least, "{} has {} elements; it must hold at least {}", name,
          tensor.extent(0), least);
}

/// The three index tensors that gate_up and down read; their values too, where they can be read.
template <class Args>
void check_sorted(const LayerSpec& spec, const Args& args, int64_t num_tokens, bool on_host) {
  check_sizes(num_tokens, args.top_k);
  check_range("unit_size", args.unit_size, 1, kMaxUnitSize);
  check_tensor("sorted_ids", args.sorted_ids, kI32, {kAnyExtent});
  const int64_t capacity = args.sorted_ids.extent(0);
  check_at_least("sorted_expert_ids", args.sorted_expert_ids, kI32,
                 ceil_div(capacity, args.unit_size));
  check_at_least("num_valid_ids", args.num_valid_ids, kI32, 1);
  check_optional("sorted_weights", args.sorted_weights, kF32, {capacity});
  if (!on_host) return;
  const int32_t valid = args.num_valid_ids.template as<const int32_t>()[0];
  check_range("num_valid_ids[0]", valid, 0, capacity);
  require(valid % args.unit_size == 0, "num_valid_ids[0] is {}; it must be whole blocks of {}",
          valid, args.unit_size);
  for (int64_t block = 0; block < valid / args.unit_size; ++block) {
    const int32_t expert = args.sorted_expert_ids.template as<const int32_t>()[block];
    require(expert >= 0 && expert < spec.num_experts,
            "sorted_expert_ids[{}] is {}; it must be below the {} experts", block, expert,
            spec.num_experts);
  }
}

DataType code_type(Format format) {
  switch (format) {
    case Format::kInt8: return DataType::kI8;
    case Format::kFp8E4m3:
    case Format::kMxfp8: return DataType::kF8E4m3;
    default: return DataType::kU8;
  }
}

}  // namespace

void validate_route(const RoutingSpec& spec, const ops::RouteArgs& args, bool on_host) {
  check_tensor("router_logits", args.router_logits, kFloats, {kAnyExtent, kAnyExtent});
  const int64_t num_tokens = args.router_logits.extent(0);
  const int64_t num_routed = args.router_logits.extent(1);
  check_shape("topk_ids", args.topk_ids, {num_tokens, kAnyExtent});
  const int64_t top_k = args.topk_ids.extent(1);
  check_sizes(num_tokens, top_k);
  // The rules of a layer hold for its routing alone; the sizes it does not have are set to one.
  validate_spec({.num_experts = num_routed + args.num_fused_shared,
                 .top_k = top_k,
                 .hidden_size = 1,
                 .intermediate_size = 1,
                 .routing = spec,
                 .num_fused_shared = args.num_fused_shared,
                 .fused_shared_weight = args.fused_shared_weight});
  check_tensor("topk_ids", args.topk_ids, kI32, {num_tokens, top_k});
  check_tensor("topk_weights", args.topk_weights, kF32, {num_tokens, top_k});
  check_optional("logit_bias", args.logit_bias, kFloats, {num_routed});
  check_optional("selection_bias", args.selection_bias, kF32, {num_routed});
  check_optional("per_expert_scale", args.per_expert_scale, kF32, {num_routed});
  check_token_count("num_tokens", args.num_tokens, num_tokens, on_host);
  if (spec.hash) {
    const int64_t routed_top_k = top_k - args.num_fused_shared;
    check_tensor("tid2eid", args.tid2eid, {DataType::kI32, DataType::kI64},
                 {kAnyExtent, routed_top_k});
    if (on_host) check_expert_table(args.tid2eid, routed_top_k, num_routed);
    check_token_ids(args.input_ids, num_tokens, args.num_tokens, args.tid2eid.extent(0), on_host);
  }
  const NamedView outputs[] = {{"topk_ids", args.topk_ids}, {"topk_weights", args.topk_weights}};
  const NamedView inputs[] = {
      {"router_logits", args.router_logits},   {"logit_bias", args.logit_bias},
      {"selection_bias", args.selection_bias}, {"per_expert_scale", args.per_expert_scale},
      {"input_ids", args.input_ids},           {"tid2eid", args.tid2eid},
      {"num_tokens", args.num_tokens}};
  check_disjoint(outputs, inputs);
}

void validate_sort_sizes(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                         int64_t unit_size) {
  check_sizes(num_tokens, top_k);
  check_range("num_experts", num_experts, 1, kMaxExperts);
  check_range("unit_size", unit_size, 1, kMaxUnitSize);
}

void validate_sort(const ops::SortArgs& args, bool on_host) {
  check_tensor("topk_ids", args.topk_ids, kI32, {kAnyExtent, kAnyExtent});
  const int64_t num_tokens = args.topk_ids.extent(0);
  const int64_t top_k = args.topk_ids.extent(1);
  validate_sort_sizes(num_tokens, top_k, args.num_experts, args.unit_size);
  const int64_t capacity = max_padded_rows(num_tokens, top_k, args.num_experts, args.unit_size);
  check_tensor("topk_weights", args.topk_weights, kF32, {num_tokens, top_k});
  check_optional("expert_mask", args.expert_mask, kI32, {args.num_experts});
  check_token_count("num_local_tokens", args.num_local_tokens, num_tokens, on_host);
  check_at_least("sorted_ids", args.sorted_ids, kI32, capacity);
  check_at_least("sorted_weights", args.sorted_weights, kF32, capacity);
  check_at_least("sorted_expert_ids", args.sorted_expert_ids, kI32, capacity / args.unit_size);
  check_at_least("num_valid_ids", args.num_valid_ids, kI32, 1);
  check_optional("local_topk_ids", args.local_topk_ids, kI32, {num_tokens, top_k});
  if (!args.m_indices.empty()) check_at_least("m_indices", args.m_indices, kI32, capacity);
  check_optional("reverse_sorted", args.reverse_sorted, kI32, {num_tokens * top_k});
  if (!args.moe_buf.empty()) {
    require(args.moe_buf.is_contiguous(), "moe_buf is strided; it must be contiguous");
    const int64_t bytes = args.moe_buf.num_elements() * element_bytes(args.moe_buf.type);
    require(bytes % 16 == 0, "moe_buf has {} bytes; it must be a multiple of 16", bytes);
  }
  const NamedView outputs[] = {{"sorted_ids", args.sorted_ids},
                               {"sorted_weights", args.sorted_weights},
                               {"sorted_expert_ids", args.sorted_expert_ids},
                               {"num_valid_ids", args.num_valid_ids},
                               {"moe_buf", args.moe_buf},
                               {"local_topk_ids", args.local_topk_ids},
                               {"m_indices", args.m_indices},
                               {"reverse_sorted", args.reverse_sorted}};
  const NamedView inputs[] = {{"topk_ids", args.topk_ids},
                              {"topk_weights", args.topk_weights},
                              {"expert_mask", args.expert_mask},
                              {"num_local_tokens", args.num_local_tokens}};
  check_disjoint(outputs, inputs);
}

namespace {

/// Everything about the format and the outputs.
void check_quantized(const ops::QuantizeArgs& args, int64_t rows, int64_t cols) {
  const Format format = args.format;
  const bool known = format == Format::kFp8E4m3 || format == Format::kInt8 ||
                     format == Format::kInt4 || format == Format::kMxfp4 ||
                     format == Format::kMxfp8 || format == Format::kNvfp4;
  require(known, "format is {}; quantize writes fp8_e4m3, int8, int4, mxfp4, mxfp8 and nvfp4",
          to_string(format));
  check_format("format", format, args.scale_block);
  check_range("scale_block.rows", args.scale_block.rows, 0, kMaxExtent);
  check_range("scale_block.cols", args.scale_block.cols, 0, kMaxExtent);
  check_range("rounding", static_cast<int64_t>(args.rounding), 0,
              static_cast<int64_t>(ScaleRounding::kCeil));
  require(args.global_scale > 0 && std::isfinite(args.global_scale),
          "global_scale is {}; it must be positive and finite", args.global_scale);

  const int64_t words = element_bits(format) == 4 ? ceil_div<int64_t>(cols, 2) : cols;
  check_tensor("values", args.values, {code_type(format)}, {rows, words});
  const auto check_scales = [&](Types types) {
    check_tensor("scales", args.scales, types,
                 {scale_rows(args.scale_block, rows), scale_cols(args.scale_block, cols)});
  };
  require(!args.power_of_two_scales || format == Format::kFp8E4m3,
          "power_of_two_scales is true for {}; only fp8_e4m3 takes it", to_string(format));
  if (format == Format::kMxfp4 || format == Format::kMxfp8)
    check_scales({DataType::kF8E8m0});
  else if (format == Format::kNvfp4)
    check_scales({DataType::kF8E4m3});
  else if (args.power_of_two_scales)
    check_scales({DataType::kF32, DataType::kBf16, DataType::kF8E8m0});
  else
    check_scales({DataType::kF32, DataType::kBf16});
}

}  // namespace

void validate_quantize(const ops::QuantizeArgs& args) {
  check_tensor("input", args.input, kFloats, {kAnyExtent, kAnyExtent});
  const int64_t cols = args.input.extent(1);
  int64_t rows = args.input.extent(0);
  if (!args.row_index.empty()) {
    check_tensor("row_index", args.row_index, kI32, {kAnyExtent});
    rows = args.row_index.extent(0);
  }
  check_optional("channel_scale", args.channel_scale, kF32, {cols});
  check_quantized(args, rows, cols);
  const NamedView outputs[] = {{"values", args.values}, {"scales", args.scales}};
  const NamedView inputs[] = {
      {"input", args.input}, {"row_index", args.row_index}, {"channel_scale", args.channel_scale}};
  check_disjoint(outputs, inputs);
}

void validate_dequantize(const WeightMatrix& matrix, const TensorView& output) {
  check_range("matrix.rows", matrix.rows, 0, kMaxExtent);
  check_range("matrix.cols", matrix.cols, 0, kMaxExtent);
  if (matrix.rows > 0 && matrix.cols > 0) check_matrix("matrix", matrix, matrix.rows, matrix.cols);
  check_tensor("output", output, kF32, {matrix.rows, matrix.cols});
}

namespace {

void check_activation(const ActivationSpec& activation, GateUpOrder order) {
  LayerSpec spec{.num_experts = 1, .top_k = 1, .hidden_size = 1, .intermediate_size = 1};
  spec.activation = activation;
  validate_spec(spec);
  check_range("order", static_cast<int64_t>(order), 0,
              static_cast<int64_t>(GateUpOrder::kInterleaved));
}

}  // namespace

void validate_activate(const ops::ActivateArgs& args) {
  check_activation(args.activation, args.order);
  check_tensor("output", args.output, kFloats, {kAnyExtent, kAnyExtent});
  const int64_t inputs_per_output = args.activation.gated() ? 2 : 1;
  const int64_t cols = args.output.extent(1) * inputs_per_output;
  check_tensor("input", args.input, kFloats, {args.output.extent(0), cols});
  check_optional("bias", args.bias, kFloats, {cols});
  const NamedView outputs[] = {{"output", args.output}};
  const NamedView inputs[] = {{"input", args.input}, {"bias", args.bias}};
  check_disjoint(outputs, inputs);
}

void validate_activate_quantize(const ops::ActivateQuantizeArgs& args, bool on_host) {
  check_activation(args.activation, args.order);
  check_tensor("input", args.input, kFloats, {kAnyExtent, kAnyExtent, kAnyExtent});
  const int64_t halves = args.activation.gated() ? 2 : 1;
  const int64_t cols = args.input.extent(2);
  require(cols % halves == 0, "input has {} columns; gate and up need an even number", cols);
  int64_t rows = args.input.extent(1);
  const bool sorted = !args.sorted_ids.empty();
  if (sorted) {
    check_range("top_k", args.top_k, 1, kMaxTopK);
    check_range("unit_size", args.unit_size, 1, kMaxUnitSize);
    check_tensor("sorted_ids", args.sorted_ids, kI32, {kAnyExtent});
    rows = args.sorted_ids.extent(0);
  }
  const bool bias_per_expert = args.bias.rank == 2;
  if (bias_per_expert) {
    check_tensor("bias", args.bias, kFloats, {kAnyExtent, cols});
    require(sorted, "bias has a row per expert; it needs sorted_ids and sorted_expert_ids");
    check_at_least("sorted_expert_ids", args.sorted_expert_ids, kI32,
                   ceil_div(rows, args.unit_size));
    for (int64_t block = 0; on_host && block < ceil_div(rows, args.unit_size); ++block) {
      check_range("sorted_expert_ids", args.sorted_expert_ids.as<const int32_t>()[block], -1,
                  args.bias.extent(0) - 1);
    }
  } else {
    check_optional("bias", args.bias, kFloats, {cols});
  }
  require(args.quantized.input.empty() && args.quantized.row_index.empty() &&
              args.quantized.channel_scale.empty(),
          "quantized.input, row_index or channel_scale is given; they stay empty here");
  check_quantized(args.quantized, rows, cols / halves);
  const NamedView outputs[] = {{"values", args.quantized.values},
                               {"scales", args.quantized.scales}};
  const NamedView inputs[] = {{"input", args.input},
                              {"bias", args.bias},
                              {"sorted_ids", args.sorted_ids},
                              {"sorted_expert_ids", args.sorted_expert_ids}};
  check_disjoint(outputs, inputs);
}

void validate_combine(const ops::CombineArgs& args, bool on_host) {
  check_tensor("expert_output", args.expert_output, kFloats, {kAnyExtent, kAnyExtent, kAnyExtent});
  const int64_t num_tokens = args.expert_output.extent(0);
  const int64_t top_k = args.expert_output.extent(1);
  const int64_t width = args.expert_output.extent(2);
  check_sizes(num_tokens, top_k);
  check_optional("topk_ids", args.topk_ids, kI32, {num_tokens, top_k});
  if (!args.topk_ids.empty()) check_range("num_experts", args.num_experts, 1, kMaxExperts);
  require(args.expert_mask.empty() || !args.topk_ids.empty(),
          "expert_mask is given; it needs topk_ids beside it");
  check_optional("expert_mask", args.expert_mask, kI32, {args.num_experts});
  check_optional("topk_weights", args.topk_weights, kF32, {num_tokens, top_k});
  check_optional("addend", args.addend, kFloats, {num_tokens, width});
  check_optional("residual", args.residual, kFloats, {num_tokens, width});
  check_token_count("num_tokens", args.num_tokens, num_tokens, on_host);
  check_tensor("output", args.output, kFloats, {num_tokens, width});
  const NamedView outputs[] = {{"output", args.output}};
  // These are read element by element before they are replaced, so each may be the output itself.
  const auto unless_in_place = [&](const TensorView& tensor) {
    const bool in_place = tensor.data == args.output.data && tensor.type == args.output.type;
    return in_place ? TensorView{} : tensor;
  };
  const NamedView inputs[] = {
      {"expert_output", args.expert_output},    {"topk_ids", args.topk_ids},
      {"expert_mask", args.expert_mask},        {"topk_weights", args.topk_weights},
      {"addend", unless_in_place(args.addend)}, {"residual", unless_in_place(args.residual)},
      {"num_tokens", args.num_tokens}};
  check_disjoint(outputs, inputs);
}

void validate_gate_up(const LayerSpec& spec, const ops::GateUpArgs& args, bool on_host) {
  check_tensor("hidden_states", args.hidden_states, kFloats, {kAnyExtent, spec.expert_width()});
  const int64_t num_tokens = args.hidden_states.extent(0);
  check_sorted(spec, args, num_tokens, on_host);
  check_tensor("output", args.output, kFloats, {num_tokens, args.top_k, spec.intermediate_size});
  require(spec.weight_position == WeightPosition::kOutput || !args.sorted_weights.empty(),
          "sorted_weights is empty; the weights multiply the input of this layer");
  const NamedView outputs[] = {{"output", args.output}};
  const NamedView inputs[] = {{"hidden_states", args.hidden_states},
                              {"sorted_ids", args.sorted_ids},
                              {"sorted_expert_ids", args.sorted_expert_ids},
                              {"num_valid_ids", args.num_valid_ids},
                              {"sorted_weights", args.sorted_weights}};
  check_disjoint(outputs, inputs);
}

void validate_down(const LayerSpec& spec, const ops::DownArgs& args, bool on_host) {
  check_tensor("intermediate", args.intermediate, kFloats,
               {kAnyExtent, kAnyExtent, spec.intermediate_size});
  const int64_t num_tokens = args.intermediate.extent(0);
  check_sorted(spec, args, num_tokens, on_host);
  check_shape("intermediate", args.intermediate, {num_tokens, args.top_k, spec.intermediate_size});
  check_tensor("output", args.output, kFloats, {num_tokens, args.top_k, spec.expert_width()});
  const NamedView outputs[] = {{"output", args.output}};
  const NamedView inputs[] = {{"intermediate", args.intermediate},
                              {"sorted_ids", args.sorted_ids},
                              {"sorted_expert_ids", args.sorted_expert_ids},
                              {"num_valid_ids", args.num_valid_ids},
                              {"sorted_weights", args.sorted_weights}};
  check_disjoint(outputs, inputs);
}

void validate_dense(const LayerSpec& spec, const ops::DenseArgs& args) {
  check_tensor("hidden_states", args.hidden_states, kFloats, {kAnyExtent, spec.expert_width()});
  const int64_t num_tokens = args.hidden_states.extent(0);
  check_range("tokens", num_tokens, 0, kMaxTokens);
  check_tensor("alpha", args.alpha, kF32, {num_tokens, spec.num_experts});
  check_tensor("output", args.output, kFloats, {num_tokens, spec.expert_width()});
  const NamedView outputs[] = {{"output", args.output}};
  const NamedView inputs[] = {{"hidden_states", args.hidden_states}, {"alpha", args.alpha}};
  check_disjoint(outputs, inputs);
}

}  // namespace switchyard
