#pragma once
// The only argument checker. Every function throws Error{kInvalidArgument, "argument is value;
// rule"} or returns; backends and steps assume that it has returned. Nothing allocates unless it
// throws.

#include "switchyard/layer.h"
#include "switchyard/ops.h"

namespace switchyard {

/// Sizes, routing, activation and formats that do not contradict each other.
void validate_spec(const LayerSpec& spec);
/// Everything in `weights` except the routed experts, which arrive one by one.
void validate_weights(const LayerSpec& spec, const Weights& weights);
/// One expert as its source hands it over; reads the scales, because one NaN spoils every token.
void validate_expert(const LayerSpec& spec, const ExpertWeights& expert, const char* name);
void validate_source(const LayerSpec& spec, const ExpertSource& source);
/// `source` with validate_expert on every expert it loads.
ExpertSource checked_source(const LayerSpec& spec, const ExpertSource& source);
void validate_options(const LayerOptions& options);
void validate_stacked(const StackedExperts& stacked);

/// Shared experts as a layer of one expert, in the format their matrices have.
LayerSpec shared_expert_spec(const LayerSpec& spec, const ExpertWeights& shared);

/// What the check of a forward call must know about its layer besides the spec.
struct ForwardRules {
  bool on_host = true;     ///< num_tokens and input_ids can be read
  bool has_router = true;  ///< a router projection was packed
  int64_t vocabulary = 0;  ///< rows of tid2eid
};
void validate_forward(const LayerSpec& spec, const ForwardArgs& args, const ForwardRules& rules);
void validate_forward_workspace(const ForwardArgs& args, Workspace workspace, int64_t needed_bytes);
/// Size and alignment.
void validate_workspace(Workspace workspace, int64_t needed_bytes);
void validate_max_tokens(int64_t max_tokens);

// The ops. `on_host` says whether small index tensors can be read here.
void validate_route(const RoutingSpec& spec, const ops::RouteArgs& args, bool on_host);
void validate_sort_sizes(int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t unit_size);
void validate_sort(const ops::SortArgs& args, bool on_host);
void validate_quantize(const ops::QuantizeArgs& args);
void validate_dequantize(const WeightMatrix& matrix, const TensorView& output);
void validate_activate(const ops::ActivateArgs& args);
void validate_activate_quantize(const ops::ActivateQuantizeArgs& args, bool on_host);
void validate_combine(const ops::CombineArgs& args, bool on_host);
void validate_gate_up(const LayerSpec& spec, const ops::GateUpArgs& args, bool on_host);
void validate_down(const LayerSpec& spec, const ops::DownArgs& args, bool on_host);
void validate_dense(const LayerSpec& spec, const ops::DenseArgs& args);

void validate_compare(const TensorView& output, const TensorView& reference);

}  // namespace switchyard
