// Checks of a layer: its spec, its weights, one forward call. The ops are in validate_ops.cpp, the
// matrices in validate_matrix.cpp.

#include "layer/validate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "layer/check.h"
#include "layer/validate_matrix.h"

namespace switchyard {
namespace {

void check_finite(const char* name, float value, float low) {
  require(std::isfinite(value) && value >= low, "{} is {}; it must be finite and at least {}", name,
          value, low);
}

template <class Enum>
void check_enum(const char* name, Enum value, Enum last) {
  check_range(name, static_cast<int64_t>(value), 0, static_cast<int64_t>(last));
}

void check_routing(const LayerSpec& spec) {
  const RoutingSpec& routing = spec.routing;
  check_enum("routing.scoring", routing.scoring, Scoring::kSqrtSoftplus);
  check_enum("routing.group_score", routing.group_score, GroupScore::kMax);
  check_range("routing.num_groups", routing.num_groups, 1, spec.num_routed());
  require(spec.num_routed() % routing.num_groups == 0,
          "routing.num_groups is {}; it must divide the {} routed experts", routing.num_groups,
          spec.num_routed());
  check_range("routing.topk_groups", routing.topk_groups, 1, routing.num_groups);
  const int64_t kept = spec.num_routed() / routing.num_groups * routing.topk_groups;
  require(spec.routed_top_k() <= kept,
          "top_k is {}; the {} kept groups hold only {} routed experts", spec.top_k,
          routing.topk_groups, kept);
  check_finite("routing.renormalize_epsilon", routing.renormalize_epsilon, 0.0f);
  require(std::isfinite(routing.routed_scaling_factor),
          "routing.routed_scaling_factor is {}; it must be finite", routing.routed_scaling_factor);
}

void check_activation(const ActivationSpec& activation) {
  check_enum("activation.kind", activation.kind, Activation::kRelu2);
  const bool clamps =
      activation.kind == Activation::kSwiGluClamp || activation.kind == Activation::kSwiGluOai;
  if (clamps)
    require(activation.limit > 0, "activation.limit is {}; it must be positive", activation.limit);
  if (activation.kind == Activation::kSwiGluOai) {
    require(std::isfinite(activation.alpha), "activation.alpha is {}; it must be finite",
            activation.alpha);
  }
  if (activation.kind != Activation::kSiTu) return;
  require(activation.beta > 0, "activation.beta is {}; it must be positive", activation.beta);
  check_finite("activation.linear_beta", activation.linear_beta, 0.0f);
}

void check_shared(const LayerSpec& spec) {
  check_range("shared.intermediate_size", spec.shared.intermediate_size, 0, kMaxWidth);
  require(!spec.shared.sigmoid_gate || spec.shared.intermediate_size > 0,
          "shared.sigmoid_gate is true; it must be false without shared experts");
  require(spec.num_fused_shared == 0 || spec.shared.intermediate_size == 0,
          "num_fused_shared is {}; it must be 0 when shared.intermediate_size is given",
          spec.num_fused_shared);
  require(std::isfinite(spec.fused_shared_weight), "fused_shared_weight is {}; it must be finite",
          spec.fused_shared_weight);
}

/// The tensors beside the router's projection.
void check_router(const LayerSpec& spec, const RouterWeights& router) {
  const int64_t routed = spec.num_routed();
  if (!router.projection.empty())
    check_matrix("router.projection", router.projection, routed, spec.hidden_size);
  check_stored_vector("router.logit_bias", router.logit_bias, routed);
  check_stored_vector("router.selection_bias", router.selection_bias, routed);
  check_stored_vector("router.per_expert_scale", router.per_expert_scale, routed);
  check_stored_vector("router.input_norm_scale", router.input_norm_scale, spec.hidden_size);
  check_finite("router.input_norm_epsilon", router.input_norm_epsilon, 0.0f);
  require(spec.routing.hash != router.tid2eid.empty(),
          "router.tid2eid is {}; it must be given exactly when routing.hash is true",
          describe_shape(router.tid2eid));
  if (spec.routing.hash) check_expert_table(router.tid2eid, spec.routed_top_k(), routed);
}

std::array<NamedView, 6> forward_inputs(const ForwardArgs& args) {
  return {{{"hidden_states", args.hidden_states},
           {"topk_ids", args.topk_ids},
           {"topk_weights", args.topk_weights},
           {"router_logits", args.router_logits},
           {"input_ids", args.input_ids},
           {"num_tokens", args.num_tokens}}};
}
std::array<NamedView, 3> forward_outputs(const ForwardArgs& args) {
  return {{{"output", args.output},
           {"topk_ids_out", args.topk_ids_out},
           {"topk_weights_out", args.topk_weights_out}}};
}

void check_absent(const char* name, bool absent, const char* because) {
  require(absent, "{} is given; it must be empty because {}", name, because);
}

}  // namespace

LayerSpec shared_expert_spec(const LayerSpec& spec, const ExpertWeights& shared) {
  return {.num_experts = 1,
          .top_k = 1,
          .hidden_size = spec.hidden_size,
          .intermediate_size = spec.shared.intermediate_size,
          .activation = spec.activation,
          .weight_format = shared.up.format,
          .weight_scale_block = shared.up.scale_block,
          .activation_format = spec.activation_format};
}

void validate_spec(const LayerSpec& spec) {
  check_range("num_experts", spec.num_experts, 1, kMaxExperts);
  check_range("top_k", spec.top_k, 1, std::min(spec.num_experts, kMaxTopK));
  check_range("num_fused_shared", spec.num_fused_shared, 0, spec.top_k - 1);
  check_range("hidden_size", spec.hidden_size, 1, kMaxWidth);
  check_range("intermediate_size", spec.intermediate_size, 1, kMaxWidth);
  check_range("latent_size", spec.latent_size, 0, kMaxWidth);
  check_finite("latent_norm_epsilon", spec.latent_norm_epsilon, 0.0f);
  check_routing(spec);
  check_activation(spec.activation);
  check_shared(spec);
  check_enum("weight_position", spec.weight_position, WeightPosition::kInput);
  check_enum("activation_format", spec.activation_format, ActivationFormat::kMxfp4);
  check_format("weight_format", spec.weight_format, spec.weight_scale_block);
}

void validate_options(const LayerOptions& options) {
  check_enum("backend", options.backend, BackendKind::kReference);
  check_range("device", options.device, 0, 1023);
  check_range("num_threads", options.num_threads, 0, 4096);
}

void validate_source(const LayerSpec& spec, const ExpertSource& source) {
  require(source.num_experts == spec.num_experts, "experts.num_experts is {}; the spec says {}",
          source.num_experts, spec.num_experts);
  require(static_cast<bool>(source.load), "experts.load is empty; it must give expert e");
}

ExpertSource checked_source(const LayerSpec& spec, const ExpertSource& source) {
  ExpertSource checked = source;
  checked.load = [spec, load = source.load](int64_t e) {
    ExpertWeights expert = load(e);
    validate_expert(spec, expert, fmt::format("experts[{}]", e).c_str());
    return expert;
  };
  return checked;
}

void validate_expert(const LayerSpec& spec, const ExpertWeights& expert, const char* name) {
  const int64_t width = spec.expert_width();
  const int64_t inner = spec.intermediate_size;
  const auto check = [&](const char* part, const WeightMatrix& matrix, int64_t rows, int64_t cols) {
    const MatrixName full{name, part};
    require(matrix.format == spec.weight_format, "{} is {}; the format of this layer is {}", full,
            to_string(matrix.format), to_string(spec.weight_format));
    require(matrix.scale_block == spec.weight_scale_block || matrix.scales.empty(),
            "{} has scale blocks {}x{}; this layer has {}x{}", full, matrix.scale_block.rows,
            matrix.scale_block.cols, spec.weight_scale_block.rows, spec.weight_scale_block.cols);
    check_matrix(full, matrix, rows, cols);
  };
  if (spec.activation.gated()) {
    check("gate", expert.gate, inner, width);
    check_same_smooth_scales({name, "gate"}, expert.gate, expert.up);
  } else {
    require(expert.gate.empty(), "{}.gate is given; activation {} has no gate matrix", name,
            to_string(spec.activation.kind));
    require(expert.gate_bias.empty(), "{}.gate_bias is given; activation {} has no gate matrix",
            name, to_string(spec.activation.kind));
  }
  check("up", expert.up, inner, width);
  check("down", expert.down, width, inner);
  check_stored_vector({name, "gate_bias"}, expert.gate_bias, inner);
  check_stored_vector({name, "up_bias"}, expert.up_bias, inner);
  check_stored_vector({name, "down_bias"}, expert.down_bias, width);
}

void validate_weights(const LayerSpec& spec, const Weights& weights) {
  validate_source(spec, weights.experts);
  check_router(spec, weights.router);
  if (spec.shared.intermediate_size > 0) {
    const LayerSpec shared = shared_expert_spec(spec, weights.shared);
    check_format("shared.up.format", shared.weight_format, shared.weight_scale_block);
    validate_expert(shared, weights.shared, "shared");
  } else {
    check_absent("shared.up", weights.shared.up.empty(), "shared.intermediate_size is 0");
  }
  if (spec.shared.sigmoid_gate) {
    check_matrix("shared_gate", weights.shared_gate, 1, spec.hidden_size);
  } else {
    check_absent("shared_gate", weights.shared_gate.empty(), "shared.sigmoid_gate is false");
  }
  if (spec.latent_size > 0) {
    check_matrix("latent_down", weights.latent_down, spec.latent_size, spec.hidden_size);
    check_matrix("latent_up", weights.latent_up, spec.hidden_size, spec.latent_size);
    check_stored_vector("latent_norm", weights.latent_norm, spec.latent_size);
  } else {
    check_absent("latent_down", weights.latent_down.empty(), "latent_size is 0");
    check_absent("latent_up", weights.latent_up.empty(), "latent_size is 0");
    check_absent("latent_norm", weights.latent_norm.empty(), "latent_size is 0");
  }
}

void validate_stacked(const StackedExperts& s) {
  check_format("format", s.format, s.scale_block);
  check_shape("gate_up", s.gate_up, {kAnyExtent, kAnyExtent, kAnyExtent});
  const int64_t num_experts = s.gate_up.extent(0);
  const int64_t gate_up_rows = s.gate_up.extent(1);
  require(!s.gated || gate_up_rows % 2 == 0,
          "gate_up is {}; a gated activation needs an even number of rows",
          describe_shape(s.gate_up));
  check_shape("down", s.down, {num_experts, kAnyExtent, kAnyExtent});
  for (const NamedView& stored : {NamedView{"gate_up", s.gate_up}, NamedView{"down", s.down}}) {
    require(!stored.view.empty(), "{} is null; it must point to {} elements", stored.name,
            stored.view.num_elements());
  }
  const auto check_rest = [&](const char* name, const TensorView& view, Extents extents) {
    if (!view.empty()) check_shape(name, view, extents);
  };
  check_rest("gate_up_scales", s.gate_up_scales, {num_experts, kAnyExtent, kAnyExtent});
  check_rest("down_scales", s.down_scales, {num_experts, kAnyExtent, kAnyExtent});
  check_rest("gate_up_bias", s.gate_up_bias, {num_experts, gate_up_rows});
  check_rest("down_bias", s.down_bias, {num_experts, s.down.extent(1)});
  check_rest("gate_up_zero_points", s.gate_up_zero_points, {num_experts, gate_up_rows, kAnyExtent});
  check_rest("down_zero_points", s.down_zero_points, {num_experts, s.down.extent(1), kAnyExtent});
  check_rest("gate_up_smooth_scales", s.gate_up_smooth_scales, {num_experts, kAnyExtent});
  check_rest("down_smooth_scales", s.down_smooth_scales, {num_experts, kAnyExtent});
  if (s.gate_up_global_scales.rank == 2)
    check_rest("gate_up_global_scales", s.gate_up_global_scales, {num_experts, 2});
  else
    check_rest("gate_up_global_scales", s.gate_up_global_scales, {num_experts});
  check_rest("down_global_scales", s.down_global_scales, {num_experts});
  for (const NamedView& scales : {NamedView{"gate_up_global_scales", s.gate_up_global_scales},
                                  NamedView{"down_global_scales", s.down_global_scales}})
    if (!scales.view.empty()) check_type(scales.name, scales.view, {DataType::kF32});
}

void validate_max_tokens(int64_t max_tokens) {
  check_range("max_tokens", max_tokens, 0, kMaxTokens);
}

void validate_workspace(Workspace workspace, int64_t needed_bytes) {
  if (needed_bytes == 0) return;
  require(workspace.bytes >= needed_bytes, "workspace has {} bytes; this call needs {}",
          workspace.bytes, needed_bytes);
  require(workspace.data != nullptr, "workspace is null; this call needs {} bytes", needed_bytes);
  require(
      reinterpret_cast<uintptr_t>(workspace.data) % static_cast<uintptr_t>(kWorkspaceAlignment) ==
          0,
      "workspace is at {}; it must be aligned to {} bytes", fmt::ptr(workspace.data),
      kWorkspaceAlignment);
}

void validate_forward(const LayerSpec& spec, const ForwardArgs& args, const ForwardRules& rules) {
  check_shape("hidden_states", args.hidden_states, {kAnyExtent, spec.hidden_size});
  const int64_t num_tokens = args.hidden_states.extent(0);
  check_range("tokens of hidden_states", num_tokens, 0, kMaxTokens);
  check_tensor("hidden_states", args.hidden_states, kFloats, {num_tokens, spec.hidden_size});
  check_tensor("output", args.output, {args.hidden_states.type}, {num_tokens, spec.hidden_size});
  if (num_tokens == 0) return;
  check_token_count("num_tokens", args.num_tokens, num_tokens, rules.on_host);

  // Whatever is given is checked, used or not: the ranges compared below must be real.
  const Extents pairs = {num_tokens, spec.top_k};
  check_optional("topk_ids", args.topk_ids, {DataType::kI32}, pairs);
  check_optional("topk_weights", args.topk_weights, {DataType::kF32}, pairs);
  check_optional("router_logits", args.router_logits, kFloats, {num_tokens, spec.num_routed()});
  check_optional("input_ids", args.input_ids, {DataType::kI32, DataType::kI64}, {num_tokens});
  check_optional("topk_ids_out", args.topk_ids_out, {DataType::kI32}, pairs);
  check_optional("topk_weights_out", args.topk_weights_out, {DataType::kF32}, pairs);
  if (!args.topk_ids.empty()) {
    require(!args.topk_weights.empty(), "topk_weights is empty; it must be given with topk_ids");
    require(args.topk_ids_out.empty() && args.topk_weights_out.empty(),
            "topk_ids_out is given together with topk_ids; the routing used is the caller's own");
  } else {
    require(args.topk_weights.empty(), "topk_weights is given; it needs topk_ids beside it");
    require(!args.router_logits.empty() || rules.has_router,
            "router_logits is empty; it must be given because the layer has no router projection");
    if (spec.routing.hash)
      check_token_ids(args.input_ids, num_tokens, args.num_tokens, rules.vocabulary, rules.on_host);
  }
  check_disjoint(forward_outputs(args), forward_inputs(args));
}

void validate_forward_workspace(const ForwardArgs& args, Workspace workspace,
                                int64_t needed_bytes) {
  validate_workspace(workspace, needed_bytes);
  const NamedView scratch[] = {
      {"workspace", TensorView::contiguous(workspace.data, DataType::kU8, {needed_bytes})}};
  check_disjoint(scratch, forward_inputs(args));
  check_disjoint(scratch, forward_outputs(args));
}

void validate_compare(const TensorView& output, const TensorView& reference) {
  const Types comparable = {DataType::kF32, DataType::kBf16, DataType::kF16, DataType::kF64};
  check_tensor("reference", reference, comparable, {kAnyExtent, kAnyExtent});
  check_tensor("output", output, comparable, {reference.extent(0), reference.extent(1)});
}

}  // namespace switchyard
