// Layer: create packs once, forward runs the steps top to bottom.

#include "switchyard/layer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "backend.h"
#include "core/activation_format.h"
#include "core/cost_model.h"
#include "core/number_formats.h"
#include "core/workspace_layout.h"
#include "layer/fuse_shared.h"
#include "layer/resolve_backend.h"
#include "layer/validate.h"

namespace switchyard {
namespace {

/// A small tensor where the backend computes.
struct Uploaded {
  std::shared_ptr<void> memory{};
  TensorView view{};
};

Uploaded upload(const Backend& backend, const TensorView& contiguous, const LayerOptions& options) {
  Uploaded copy{.view = contiguous};
  copy.memory = backend.upload(contiguous.data,
                               contiguous.num_elements() * element_bytes(contiguous.type), options);
  copy.view.data = copy.memory.get();
  return copy;
}

/// A stored vector of any float type, as f32.
Uploaded upload_f32(const Backend& backend, const TensorView& vector, const LayerOptions& options) {
  if (vector.empty()) return {};
  std::vector<float> values(static_cast<size_t>(vector.extent(0)));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = load_as_f32(vector.data, vector.type, static_cast<int64_t>(i) * vector.stride(0));
  return upload(backend, TensorView::contiguous(values.data(), DataType::kF32, {vector.extent(0)}),
                options);
}

/// The shared experts as a source of one expert.
ExpertSource one_expert(const ExpertWeights& expert) {
  return {.num_experts = 1, .load = [expert](int64_t) { return expert; }};
}

}  // namespace

struct Layer::Impl {
  LayerSpec spec;
  LayerSpec packed_spec;      ///< of `experts`: with the shared ones, where they are fused
  std::string why_not_fused;  ///< shared experts with the routed ones
  LayerOptions options;
  ResolvedBackend resolved;

  std::unique_ptr<PackedExperts> experts, shared;
  std::unique_ptr<PackedLinear> router, shared_gate, latent_down, latent_up;
  Uploaded logit_bias, selection_bias, per_expert_scale, tid2eid, input_norm_scale, latent_norm;
  float input_norm_epsilon = 0.0f;

  const Backend& backend() const { return *resolved.backend; }
  /// Experts that the spec calls shared and `experts` holds.
  int64_t num_fused() const { return packed_spec.num_experts - spec.num_experts; }
  bool on_host() const { return backend().kind() != BackendKind::kCuda; }
  int64_t vocabulary() const { return tid2eid.view.empty() ? 0 : tid2eid.view.extent(0); }
  std::array<const PackedLinear*, 4> linears() const {
    return {router.get(), shared_gate.get(), latent_down.get(), latent_up.get()};
  }

  void pack(const Weights& weights);
  void pack_experts(const Weights& weights);
  LayerWorkspace workspace(int64_t num_tokens) const;
  /// Where the choice of experts is, or will be once the request is carried out.
  struct Choice {
    TensorView topk_ids, topk_weights;
    std::optional<RouteRequest> request{};
  };
  ops::Execution execution(Stream stream) const {
    return {.backend = backend().kind(),
            .device = options.device,
            .stream = stream,
            .executor = experts->executor()};
  }
  /// What multiplies the shared experts' output, [T, 1]; empty: nothing.
  TensorView run_shared_gate(const ForwardArgs& args, const LayerWorkspace& layout,
                             Workspace workspace, Stream stream) const;
  Choice route(const ForwardArgs& args, const TensorView& gate, const LayerWorkspace& layout,
               Workspace workspace, Stream stream) const;
  Choice route_given(const ForwardArgs& args, const TensorView& gate, const LayerWorkspace& layout,
                     Workspace workspace, Stream stream) const;
  TensorView run_shared(const ForwardArgs& args, const TensorView& gate,
                        const LayerWorkspace& layout, Workspace workspace, Stream stream) const;
  void run_experts(const ForwardArgs& args, const Choice& choice, const TensorView& addend,
                   const LayerWorkspace& layout, Workspace workspace, Stream stream) const;
  /// Of a plan's route step.
  std::string fusion_text() const {
    if (num_fused() == 0) return {};
    return fmt::format("; every token takes {} more: shared expert fused with the routed ones",
                       num_fused());
  }
  void plan_linear(const char* step, const PackedLinear* linear, int64_t rows, int64_t cols,
                   const MachineLimits& limits, Plan& plan) const;
};

void Layer::Impl::pack(const Weights& weights) {
  const Backend& b = backend();
  const auto linear = [&](const WeightMatrix& matrix) {
    return matrix.empty() ? nullptr : b.pack_linear(matrix, {}, options);
  };
  const RouterWeights& r = weights.router;
  router = linear(r.projection);
  shared_gate = linear(weights.shared_gate);
  latent_down = linear(weights.latent_down);
  latent_up = linear(weights.latent_up);
  logit_bias = upload_f32(b, r.logit_bias, options);
  selection_bias = upload_f32(b, r.selection_bias, options);
  per_expert_scale = upload_f32(b, r.per_expert_scale, options);
  input_norm_scale = upload_f32(b, r.input_norm_scale, options);
  input_norm_epsilon = r.input_norm_epsilon;
  latent_norm = upload_f32(b, weights.latent_norm, options);
  if (!r.tid2eid.empty()) tid2eid = upload(b, r.tid2eid, options);
  pack_experts(weights);
}

void Layer::Impl::pack_experts(const Weights& weights) {
  const Backend& b = backend();
  FusedShared packed{.spec = spec, .experts = checked_source(spec, weights.experts)};
  const bool has_shared = spec.shared.intermediate_size > 0;
  if (has_shared && b.fuses_shared()) packed = fuse_shared(spec, packed.experts, weights.shared);
  packed_spec = packed.spec;
  why_not_fused = packed.why_not;

  LayerOptions counted = options;  // progress counts the routed experts
  if (options.on_progress) {
    counted.on_progress = [this](int64_t done, int64_t) {
      if (done <= spec.num_experts) options.on_progress(done, spec.num_experts);
    };
  }
  experts = b.pack_experts(packed_spec, packed.experts, counted);
  if (!has_shared || num_fused() > 0) return;
  counted.on_progress = nullptr;
  LayerSpec own = shared_expert_spec(spec, weights.shared);
  // The error bound follows from the routed experts: nothing is rounded here if nothing is there.
  if (resolved_activation_format(spec, b.kind()) == ActivationFormat::kNone) {
    own.activation_format = ActivationFormat::kNone;
  }
  shared = b.pack_experts(own, one_expert(weights.shared), counted);
}

LayerWorkspace Layer::Impl::workspace(int64_t num_tokens) const {
  int64_t step_bytes = experts->workspace_bytes(num_tokens, packed_spec.top_k);
  if (shared) step_bytes = std::max(step_bytes, shared->workspace_bytes(num_tokens, 1));
  for (const PackedLinear* linear : linears())
    if (linear != nullptr) step_bytes = std::max(step_bytes, linear->workspace_bytes(num_tokens));
  return layer_workspace({.num_tokens = num_tokens,
                          .router_input = input_norm_scale.view.empty() ? 0 : spec.hidden_size,
                          .router_logits = router ? spec.num_routed() : 0,
                          .top_k = packed_spec.top_k,
                          .shared_weight = shared_gate ? 1 : 0,
                          .shared_output = shared ? spec.hidden_size : 0,
                          .latent = spec.latent_size,
                          .step_bytes = step_bytes});
}

Layer Layer::create(const LayerSpec& spec, const Weights& weights, const LayerOptions& options) {
  validate_spec(spec);
  validate_options(options);
  validate_weights(spec, weights);
  std::vector<LayerSpec> specs{spec};
  if (spec.shared.intermediate_size > 0) specs.push_back(shared_expert_spec(spec, weights.shared));
  auto impl = std::make_unique<Impl>();
  impl->spec = spec;
  impl->options = options;
  impl->resolved = resolve_backend(specs, options);
  try {
    impl->pack(weights);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("num_experts is {}; no memory is left to pack them", spec.num_experts));
  }
  return Layer(std::move(impl));
}

Layer::Layer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Layer::Layer(Layer&&) noexcept = default;
Layer& Layer::operator=(Layer&&) noexcept = default;
Layer::~Layer() = default;

const LayerSpec& Layer::spec() const noexcept { return impl_->spec; }
BackendKind Layer::backend() const noexcept { return impl_->backend().kind(); }

int64_t Layer::packed_bytes() const noexcept {
  int64_t bytes = impl_->experts->packed_bytes();
  if (impl_->shared) bytes += impl_->shared->packed_bytes();
  for (const PackedLinear* linear : impl_->linears())
    if (linear != nullptr) bytes += linear->packed_bytes();
  return bytes;
}

int64_t Layer::workspace_bytes(int64_t max_tokens) const {
  validate_max_tokens(max_tokens);
  return max_tokens == 0 ? 0 : impl_->workspace(max_tokens).bytes;
}

void Layer::forward(const ForwardArgs& args, Workspace workspace, Stream stream) const {
  const Impl& layer = *impl_;
  validate_forward(layer.spec, args,
                   {.on_host = layer.on_host(),
                    .has_router = layer.router != nullptr,
                    .vocabulary = layer.vocabulary()});
  const int64_t num_tokens = args.hidden_states.extent(0);
  if (num_tokens == 0) return;
  const LayerWorkspace layout = layer.workspace(num_tokens);
  validate_forward_workspace(args, workspace, layout.bytes);

  const TensorView gate = layer.run_shared_gate(args, layout, workspace, stream);
  const Impl::Choice choice = layer.route(args, gate, layout, workspace, stream);
  const TensorView addend = layer.run_shared(args, gate, layout, workspace, stream);
  layer.run_experts(args, choice, addend, layout, workspace, stream);
}

Layer::Impl::Choice Layer::Impl::route(const ForwardArgs& args, const TensorView& gate,
                                       const LayerWorkspace& layout, Workspace workspace,
                                       Stream stream) const {
  if (!args.topk_ids.empty()) return route_given(args, gate, layout, workspace, stream);
  const int64_t num_tokens = args.hidden_states.extent(0);
  TensorView logits = args.router_logits;
  if (logits.empty()) {
    TensorView input = args.hidden_states;
    if (!input_norm_scale.view.empty()) {
      input = TensorView::contiguous(layout.router_input.in(workspace), DataType::kF32,
                                     {num_tokens, spec.hidden_size});
      backend().rms_norm({.input = args.hidden_states,
                          .scale = input_norm_scale.view,
                          .epsilon = input_norm_epsilon,
                          .num_tokens = args.num_tokens,
                          .output = input},
                         execution(stream));
    }
    logits = TensorView::contiguous(layout.router_logits.in(workspace), DataType::kF32,
                                    {num_tokens, spec.num_routed()});
    router->run({.input = input, .num_tokens = args.num_tokens, .output = logits},
                layout.step.of(workspace), stream);
  }
  const bool fused = num_fused() > 0;  // then the caller gets copies of the routed columns
  const auto out = [&](const TensorView& wanted, const WorkspaceRegion& region, DataType type) {
    return wanted.empty() || fused
               ? TensorView::contiguous(region.in(workspace), type, {num_tokens, packed_spec.top_k})
               : wanted;
  };
  const TensorView ids = out(args.topk_ids_out, layout.topk_ids, DataType::kI32);
  const TensorView weights = out(args.topk_weights_out, layout.topk_weights, DataType::kF32);
  RouteRequest request{.spec = spec.routing,
                       .args = {.router_logits = logits,
                                .logit_bias = logit_bias.view,
                                .selection_bias = selection_bias.view,
                                .per_expert_scale = per_expert_scale.view,
                                .input_ids = args.input_ids,
                                .tid2eid = tid2eid.view,
                                .num_fused_shared = packed_spec.num_fused_shared,
                                .fused_shared_weight = packed_spec.fused_shared_weight,
                                .num_tokens = args.num_tokens,
                                .topk_ids = ids,
                                .topk_weights = weights}};
  if (fused) {
    request.routed_ids = args.topk_ids_out;
    request.routed_weights = args.topk_weights_out;
    request.shared_weights = gate;
  }
  Choice choice{.topk_ids = ids, .topk_weights = weights};
  if (experts->routes(num_tokens)) {
    choice.request = request;
  } else {
    backend().route(request, execution(stream));
  }
  return choice;
}

Layer::Impl::Choice Layer::Impl::route_given(const ForwardArgs& args, const TensorView& gate,
                                             const LayerWorkspace& layout, Workspace workspace,
                                             Stream stream) const {
  if (num_fused() == 0) return {.topk_ids = args.topk_ids, .topk_weights = args.topk_weights};
  const auto out = [&](const WorkspaceRegion& region, DataType type) {
    return TensorView::contiguous(region.in(workspace), type,
                                  {args.topk_ids.extent(0), packed_spec.top_k});
  };
  const Choice choice{.topk_ids = out(layout.topk_ids, DataType::kI32),
                      .topk_weights = out(layout.topk_weights, DataType::kF32)};
  backend().append_shared({.routed_ids = args.topk_ids,
                           .routed_weights = args.topk_weights,
                           .num_routed = packed_spec.num_routed(),
                           .shared_weight = packed_spec.fused_shared_weight,
                           .shared_weights = gate,
                           .num_tokens = args.num_tokens,
                           .topk_ids = choice.topk_ids,
                           .topk_weights = choice.topk_weights},
                          execution(stream));
  return choice;
}

TensorView Layer::Impl::run_shared_gate(const ForwardArgs& args, const LayerWorkspace& layout,
                                        Workspace workspace, Stream stream) const {
  if (!shared_gate) return {};
  const TensorView gate = TensorView::contiguous(layout.shared_weight.in(workspace), DataType::kF32,
                                                 {args.hidden_states.extent(0), 1});
  shared_gate->run({.input = args.hidden_states,
                    .num_tokens = args.num_tokens,
                    .epilogue = LinearEpilogue::kSigmoid,
                    .output = gate},
                   layout.step.of(workspace), stream);
  return gate;
}

TensorView Layer::Impl::run_shared(const ForwardArgs& args, const TensorView& gate,
                                   const LayerWorkspace& layout, Workspace workspace,
                                   Stream stream) const {
  if (!shared) return {};
  const int64_t num_tokens = args.hidden_states.extent(0);
  const TensorView output = TensorView::contiguous(layout.shared_output.in(workspace),
                                                   DataType::kF32, {num_tokens, spec.hidden_size});
  shared->run({.hidden_states = args.hidden_states,
               .topk_weights = gate,
               .num_tokens = args.num_tokens,
               .output = output},
              layout.step.of(workspace), stream);
  return output;
}

void Layer::Impl::run_experts(const ForwardArgs& args, const Choice& choice,
                              const TensorView& addend, const LayerWorkspace& layout,
                              Workspace workspace, Stream stream) const {
  const Workspace step = layout.step.of(workspace);
  RunExpertsArgs run{.hidden_states = args.hidden_states,
                     .topk_ids = choice.topk_ids,
                     .topk_weights = choice.topk_weights,
                     .addend = addend,
                     .num_tokens = args.num_tokens,
                     .output = args.output,
                     .route = choice.request ? &*choice.request : nullptr};
  if (spec.latent_size == 0) {
    experts->run(run, step, stream);
    return;
  }
  const auto latent = [&](const WorkspaceRegion& region, DataType type) {
    return TensorView::contiguous(region.in(workspace), type,
                                  {args.hidden_states.extent(0), spec.latent_size});
  };
  const DataType type = experts->latent_type(args.hidden_states.type);
  const bool normed = !latent_norm.view.empty();
  run.hidden_states = latent(layout.latent_input, type);
  run.addend = {};  // the shared experts work on the full width and are added after the projection
  run.output = latent(layout.latent_output, normed ? DataType::kF32 : type);
  latent_down->run(
      {.input = args.hidden_states, .num_tokens = args.num_tokens, .output = run.hidden_states},
      step, stream);
  experts->run(run, step, stream);
  TensorView sum = run.output;
  if (normed) {
    sum = run.hidden_states;  // no longer needed
    backend().rms_norm({.input = run.output,
                        .scale = latent_norm.view,
                        .epsilon = spec.latent_norm_epsilon,
                        .num_tokens = args.num_tokens,
                        .output = sum},
                       execution(stream));
  }
  latent_up->run(
      {.input = sum, .addend = addend, .num_tokens = args.num_tokens, .output = args.output}, step,
      stream);
}

void Layer::Impl::plan_linear(const char* step, const PackedLinear* linear, int64_t rows,
                              int64_t cols, const MachineLimits& limits, Plan& plan) const {
  if (linear == nullptr) return;
  const double tokens = static_cast<double>(plan.num_tokens);
  const LinearStep planned = linear->step(plan.num_tokens);
  const double traffic =
      static_cast<double>(planned.weight_bytes) + 4.0 * tokens * static_cast<double>(rows + cols);
  const double flops = 2.0 * tokens * static_cast<double>(rows) * static_cast<double>(cols);
  plan.steps.push_back({.step = step,
                        .kernel = planned.kernel,
                        .why = fmt::format("{} x {}, every token", rows, cols),
                        .bytes = traffic,
                        .flops = flops,
                        .predicted_us = predict_us(
                            traffic, flops, limits.read_gbps,
                            planned.on_matrix_unit ? limits.bf16_gflops : limits.f32_gflops)});
}

Plan Layer::plan(int64_t num_tokens, const MachineLimits& limits) const {
  validate_max_tokens(num_tokens);
  const Impl& layer = *impl_;
  const LayerSpec& spec = layer.spec;
  Plan plan;
  plan.backend = backend();
  plan.device = layer.backend().device_name(layer.options);
  plan.num_tokens = num_tokens;
  plan.workspace_bytes = workspace_bytes(num_tokens);
  plan.rejected = layer.resolved.rejected;
  if (!layer.why_not_fused.empty())
    plan.rejected.push_back("shared experts fused with the routed ones: " + layer.why_not_fused);
  if (num_tokens == 0) return plan;
  plan.expected_distinct_experts =
      expected_distinct_experts(spec.num_routed(), spec.routed_top_k(), num_tokens) +
      static_cast<double>(spec.num_fused_shared);

  layer.plan_linear("router", layer.router.get(), spec.num_routed(), spec.hidden_size, limits,
                    plan);
  const double logits_bytes = 4.0 * static_cast<double>(num_tokens * spec.num_routed());
  plan.steps.push_back({.step = "route",
                        .kernel = to_string(spec.routing.scoring),
                        .why = fmt::format("top {} of {}{}", spec.routed_top_k(), spec.num_routed(),
                                           layer.fusion_text()),
                        .bytes = logits_bytes,
                        .predicted_us = predict_us(logits_bytes, 0, limits.read_gbps, 0)});
  layer.plan_linear("shared gate", layer.shared_gate.get(), 1, spec.hidden_size, limits, plan);
  if (layer.shared) {
    const size_t first = plan.steps.size();
    layer.shared->plan(num_tokens, 1, limits, plan);
    for (size_t i = first; i < plan.steps.size(); ++i)
      plan.steps[i].step = "shared " + plan.steps[i].step;
  }
  layer.plan_linear("latent down", layer.latent_down.get(), spec.latent_size, spec.hidden_size,
                    limits, plan);
  layer.experts->plan(num_tokens, layer.packed_spec.top_k, limits, plan);
  layer.plan_linear("latent up", layer.latent_up.get(), spec.hidden_size, spec.latent_size, limits,
                    plan);
  return plan;
}

}  // namespace switchyard
