// Router logits to expert choice, one token after the other, tokens over threads.

#include <algorithm>

#include "core/gating.h"
#include "cpu/rows.h"
#include "cpu/steps.h"

namespace switchyard::cpu {
namespace {

/// One token: routed experts, then the fused shared ones.
void route_token(const Gating& gating, const ops::RouteArgs& args, int64_t token,
                 const float* logits, GatingScratch& scratch) {
  const int64_t top_k = args.topk_ids.extent(1);
  int32_t* ids = args.topk_ids.as<int32_t>() + token * top_k;
  float* weights = args.topk_weights.as<float>() + token * top_k;
  bool chosen = true;
  if (!gating.spec.hash) {
    select_experts(gating, logits, scratch, ids);
  } else {
    chosen = look_up_experts(gating, args.tid2eid, index_at(args.input_ids, token), ids);
  }
  if (chosen) {
    gating_weights(gating, logits, ids, scratch, weights);
  } else {
    std::fill_n(ids, gating.top_k, -1);
    std::fill_n(weights, gating.top_k, 0.0f);
  }
  for (int64_t k = gating.top_k; k < top_k; ++k) {
    ids[k] = static_cast<int32_t>(gating.num_experts + k - gating.top_k);
    weights[k] = args.fused_shared_weight;
  }
}

void route_tokens(const Gating& gating, const ops::RouteArgs& args, int64_t begin, int64_t end) {
  const int64_t n = gating.num_experts;
  GatingScratch scratch;
  float bias[kMaxExperts] = {};
  float logits[kMaxExperts];
  if (!args.logit_bias.empty()) load_row(args.logit_bias, 0, n, bias);
  for (int64_t token = begin; token < end; ++token) {
    load_row(args.router_logits, token * n, n, logits);
    for (int64_t e = 0; e < n; ++e) logits[e] = finite_logit(logits[e] + bias[e]);
    route_token(gating, args, token, logits, scratch);
  }
}

}  // namespace

void route(const RoutingSpec& spec, const ops::RouteArgs& args, Executor& executor) {
  const int64_t num_tokens = args.router_logits.extent(0);
  const int64_t top_k = args.topk_ids.extent(1);
  const Gating gating{.spec = spec,
                      .num_experts = args.router_logits.extent(1),
                      .top_k = top_k - args.num_fused_shared,
                      .selection_bias = args.selection_bias.as<const float>(),
                      .per_expert_scale = args.per_expert_scale.as<const float>()};
  const int64_t num_routed = rows_to_compute(args.num_tokens, num_tokens);
  for_row_ranges(executor, num_routed, gating.num_experts,
                 [&](int64_t begin, int64_t end) { route_tokens(gating, args, begin, end); });
  const int64_t num_left = (num_tokens - num_routed) * top_k;
  std::fill_n(args.topk_ids.as<int32_t>() + num_routed * top_k, num_left, -1);
  std::fill_n(args.topk_weights.as<float>() + num_routed * top_k, num_left, 0.0f);
}

}  // namespace switchyard::cpu
