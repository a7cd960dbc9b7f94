// The steps as public operations: check, then one call of the backend.

#include "switchyard/ops.h"

#include "core/expert_sort.h"
#include "layer/resolve_backend.h"
#include "layer/validate.h"

namespace switchyard::ops {
namespace {

bool on_host(const Backend& backend) { return backend.kind() != BackendKind::kCuda; }

}  // namespace

void route(const RoutingSpec& spec, const RouteArgs& args, const Execution& execution) {
  const Backend& backend = backend_of(execution);
  validate_route(spec, args, on_host(backend));
  backend.route({.spec = spec, .args = args}, execution);
}

int64_t sort_capacity(int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t unit_size) {
  validate_sort_sizes(num_tokens, top_k, num_experts, unit_size);
  return switchyard::sort_capacity(num_tokens, top_k, num_experts, unit_size);
}

int64_t sort_workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                             int64_t unit_size, BackendKind kind) {
  validate_sort_sizes(num_tokens, top_k, num_experts, unit_size);
  return backend_of({.backend = kind})
      .sort_workspace_bytes(num_tokens, top_k, num_experts, unit_size);
}

void sort(const SortArgs& args, const Execution& execution) {
  const Backend& backend = backend_of(execution);
  validate_sort(args, on_host(backend));
  validate_workspace(execution.workspace,
                     backend.sort_workspace_bytes(args.topk_ids.extent(0), args.topk_ids.extent(1),
                                                  args.num_experts, args.unit_size));
  backend.sort(args, execution);
}

void quantize(const QuantizeArgs& args, const Execution& execution) {
  const Backend& backend = backend_of(execution);
  validate_quantize(args);
  backend.quantize(args, execution);
}

void activate(const ActivateArgs& args, const Execution& execution) {
  const Backend& backend = backend_of(execution);
  validate_activate(args);
  backend.activate(args, execution);
}

void activate_quantize(const ActivateQuantizeArgs& args, const Execution& execution) {
  const Backend& backend = backend_of(execution);
  validate_activate_quantize(args, on_host(backend));
  backend.activate_quantize(args, execution);
}

void combine(const CombineArgs& args, const Execution& execution) {
  const Backend& backend = backend_of(execution);
  validate_combine(args, on_host(backend));
  backend.combine(args, execution);
}

struct Experts::Impl {
  LayerSpec spec;
  const Backend* backend;
  std::unique_ptr<PackedExperts> packed;
};

Experts Experts::create(const LayerSpec& spec, const ExpertSource& source,
                        const LayerOptions& options) {
  validate_spec(spec);
  validate_options(options);
  validate_source(spec, source);
  const Backend* backend = resolve_backend({&spec, 1}, options).backend;
  return Experts(std::make_unique<Impl>(
      Impl{spec, backend, backend->pack_experts(spec, checked_source(spec, source), options)}));
}

Experts::Experts(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Experts::Experts(Experts&&) noexcept = default;
Experts& Experts::operator=(Experts&&) noexcept = default;
Experts::~Experts() = default;

int64_t Experts::workspace_bytes(int64_t max_tokens, int64_t top_k) const {
  validate_sort_sizes(max_tokens, top_k, impl_->spec.num_experts, 1);
  return impl_->packed->workspace_bytes(max_tokens, top_k);
}

void Experts::gate_up(const GateUpArgs& args, Workspace workspace, Stream stream) const {
  validate_gate_up(impl_->spec, args, on_host(*impl_->backend));
  validate_workspace(workspace,
                     impl_->packed->workspace_bytes(args.hidden_states.extent(0), args.top_k));
  impl_->packed->gate_up(args, workspace, stream);
}

void Experts::down(const DownArgs& args, Workspace workspace, Stream stream) const {
  validate_down(impl_->spec, args, on_host(*impl_->backend));
  validate_workspace(workspace,
                     impl_->packed->workspace_bytes(args.intermediate.extent(0), args.top_k));
  impl_->packed->down(args, workspace, stream);
}

void Experts::dense(const DenseArgs& args, Workspace workspace, Stream stream) const {
  validate_dense(impl_->spec, args);
  validate_workspace(
      workspace, impl_->packed->workspace_bytes(args.hidden_states.extent(0), impl_->spec.top_k));
  impl_->packed->dense(args, workspace, stream);
}

}  // namespace switchyard::ops
