// Routing: the one definition of the choice (core/gating.h), weights in double.

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/gating.h"
#include "core/number_formats.h"
#include "reference/steps.h"

namespace switchyard::reference {
namespace {

/// For softmax the numerator over exp(max).
double score(Scoring scoring, double logit, double max_logit) {
  switch (scoring) {
    case Scoring::kSoftmax: return std::exp(logit - max_logit);
    case Scoring::kSigmoid: return 1.0 / (1.0 + std::exp(-logit));
    case Scoring::kSqrtSoftplus: break;
  }
  return std::sqrt(std::max(logit, 0.0) + std::log1p(std::exp(-std::abs(logit))));
}

void weigh(const Gating& gating, const std::vector<float>& logits, const int32_t* ids,
           float* weights) {
  const RoutingSpec& spec = gating.spec;
  const double max_logit = *std::max_element(logits.begin(), logits.end());
  double denominator = 1.0;
  if (spec.scoring == Scoring::kSoftmax) {
    denominator = 0.0;
    for (const float logit : logits) denominator += score(spec.scoring, logit, max_logit);
  }
  const auto chosen = [&](int64_t k) {
    return score(spec.scoring, logits[static_cast<size_t>(ids[k])], max_logit);
  };
  double divisor = denominator;
  if (spec.renormalize) {
    divisor *= static_cast<double>(spec.renormalize_epsilon);
    for (int64_t k = 0; k < gating.top_k; ++k) divisor += chosen(k);
    divisor = std::max(divisor, double{kSmallestDivisor});
  }
  for (int64_t k = 0; k < gating.top_k; ++k) {
    double weight = chosen(k) / divisor * static_cast<double>(spec.routed_scaling_factor);
    if (gating.per_expert_scale != nullptr) weight *= double{gating.per_expert_scale[ids[k]]};
    weights[k] = static_cast<float>(weight);
  }
}

/// False when a hash layer has no experts for the token.
bool choose(const Gating& gating, const ops::RouteArgs& args, int64_t token,
            const std::vector<float>& logits, int32_t* ids) {
  if (gating.spec.hash) {
    return look_up_experts(gating, args.tid2eid, index_at(args.input_ids, token), ids);
  }
  std::vector<GatingScratch> scratch(1);
  select_experts(gating, logits.data(), scratch[0], ids);
  return true;
}

}  // namespace

void route(const RoutingSpec& spec, const ops::RouteArgs& args) {
  const TensorView& in = args.router_logits;
  const int64_t num_tokens = in.extent(0);
  const int64_t num_experts = in.extent(1);
  const int64_t top_k = args.topk_ids.extent(1);
  const Gating gating{.spec = spec,
                      .num_experts = num_experts,
                      .top_k = top_k - args.num_fused_shared,
                      .selection_bias = args.selection_bias.as<const float>(),
                      .per_expert_scale = args.per_expert_scale.as<const float>()};
  const int64_t num_routed =
      args.num_tokens.empty() ? num_tokens : int64_t{args.num_tokens.as<const int32_t>()[0]};
  std::vector<float> logits(static_cast<size_t>(num_experts));
  for (int64_t token = 0; token < num_tokens; ++token) {
    int32_t* ids = args.topk_ids.as<int32_t>() + token * top_k;
    float* weights = args.topk_weights.as<float>() + token * top_k;
    for (int64_t e = 0; e < num_experts; ++e) {
      float logit = load_as_f32(in.data, in.type, token * num_experts + e);
      if (!args.logit_bias.empty()) {
        logit += load_as_f32(args.logit_bias.data, args.logit_bias.type, e);
      }
      logits[static_cast<size_t>(e)] = finite_logit(logit);
    }
    if (token >= num_routed) {
      std::fill_n(ids, top_k, -1);
      std::fill_n(weights, top_k, 0.0f);
      continue;
    }
    if (choose(gating, args, token, logits, ids)) {
      weigh(gating, logits, ids, weights);
    } else {
      std::fill_n(ids, gating.top_k, -1);
      std::fill_n(weights, gating.top_k, 0.0f);
    }
    for (int64_t k = gating.top_k; k < top_k; ++k) {
      ids[k] = static_cast<int32_t>(num_experts + k - gating.top_k);
      weights[k] = args.fused_shared_weight;
    }
  }
}

}  // namespace switchyard::reference
