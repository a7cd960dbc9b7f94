#include "cli/router_truth.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "switchyard/ops.h"

namespace switchyard::cli {
namespace {

// Of a weight, beside what the logits' own tolerance allows: exponentials and the sum in f32.
constexpr double kWeightTolerance = 1e-5;

std::multiset<int32_t> sorted_row(const TensorView& ids, int64_t token) {
  const auto* begin = ids.as<int32_t>() + token * ids.extent(1);
  return {begin, begin + ids.extent(1)};
}

}  // namespace

RouterTruth::RouterTruth(const LayerSpec& spec, const RouterWeights& router)
    : spec_(spec),
      router_(&router),
      num_experts_(spec.num_routed()),
      hidden_size_(spec.hidden_size),
      matrix_(DataType::kF32, {num_experts_, hidden_size_}) {
  ops::dequantize(router.projection, matrix_.view());
  if (router.input_norm_scale.empty()) return;
  const TensorView& scale = router.input_norm_scale;
  const HostTensor scale_f32 =
      convert(TensorView::contiguous(scale.data, scale.type, {1, hidden_size_}), DataType::kF32);
  for (int64_t i = 0; i < num_experts_ * hidden_size_; ++i) {
    matrix_.as<float>()[i] *= scale_f32.as<float>()[i % hidden_size_];
  }
}

int64_t RouterTruth::vocab_size() const {
  return spec_.routing.hash ? router_->tid2eid.extent(0) : 0;
}

RouterTruth::Logits RouterTruth::logits(const TensorView& hidden_states_f32) const {
  const int64_t num_tokens = hidden_states_f32.extent(0);
  const auto count = static_cast<size_t>(num_tokens * num_experts_);
  Logits result{.values = std::vector<double>(count), .tolerance = std::vector<double>(count)};
  // A sum of H products in f32: each partial sum is off by half an ulp, errors add like a walk; 4
  // covers the walk's tail and a normed input.
  const double ulps = 4 * 0x1p-24 * (std::sqrt(static_cast<double>(hidden_size_)) + 1);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const float* x = hidden_states_f32.as<float>() + t * hidden_size_;
    double factor = 1;
    if (!router_->input_norm_scale.empty()) {
      double squares = 0;
      for (int64_t h = 0; h < hidden_size_; ++h) squares += double{x[h]} * x[h];
      factor = 1 / std::sqrt(squares / static_cast<double>(hidden_size_) +
                             double{router_->input_norm_epsilon});
    }
    for (int64_t e = 0; e < num_experts_; ++e) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t h = 0; h < hidden_size_; ++h) {
        const double product = double{x[h]} * row(e)[h];
        sum += product;
        magnitude += std::abs(product);
      }
      const auto i = static_cast<size_t>(t * num_experts_ + e);
      result.values[i] = sum * factor;
      result.tolerance[i] = magnitude * factor * ulps;
    }
  }
  return result;
}

RouterTruth::Choice RouterTruth::choose(const std::vector<double>& logits,
                                        const TensorView& input_ids, int64_t extra) const {
  const auto num_tokens = static_cast<int64_t>(logits.size()) / num_experts_;
  const HostTensor rounded(DataType::kF32, {num_tokens, num_experts_});
  std::transform(logits.begin(), logits.end(), rounded.as<float>(),
                 [](double logit) { return static_cast<float>(logit); });
  const int64_t top_k = spec_.top_k + extra;
  Choice choice{.ids = HostTensor(DataType::kI32, {num_tokens, top_k}),
                .weights = HostTensor(DataType::kF32, {num_tokens, top_k})};
  ops::RouteArgs args;
  args.router_logits = rounded.view();
  args.logit_bias = router_->logit_bias;
  args.selection_bias = router_->selection_bias;
  args.per_expert_scale = router_->per_expert_scale;
  args.input_ids = input_ids;
  args.tid2eid = router_->tid2eid;
  args.num_fused_shared = spec_.num_fused_shared;
  args.fused_shared_weight = spec_.fused_shared_weight;
  args.topk_ids = choice.ids.view();
  args.topk_weights = choice.weights.view();
  ops::route(spec_.routing, args, {.backend = BackendKind::kReference});
  return choice;
}

/// Moves every logit within its tolerance in favour of `topk_ids`: chosen experts up, experts of
/// groups without a chosen one down. What is in reach of float rounding is then the best choice.
std::vector<double> RouterTruth::nudged(const Logits& logits, const TensorView& topk_ids) const {
  const int64_t top_k = topk_ids.extent(1);
  const int64_t group_size = num_experts_ / std::max(spec_.routing.num_groups, 1);
  std::vector<double> result = logits.values;
  for (int64_t t = 0; t < topk_ids.extent(0); ++t) {
    const auto* ids = topk_ids.as<int32_t>() + t * top_k;
    std::set<int64_t> chosen(ids, ids + top_k);
    std::set<int64_t> groups;
    for (const int64_t e : chosen) groups.insert(e / group_size);
    for (int64_t e = 0; e < num_experts_; ++e) {
      const auto i = static_cast<size_t>(t * num_experts_ + e);
      if (chosen.contains(e)) {
        result[i] += logits.tolerance[i];
      } else if (spec_.routing.num_groups <= 1 || !groups.contains(e / group_size)) {
        result[i] -= logits.tolerance[i];
      }
    }
  }
  return result;
}

std::string RouterTruth::why_wrong(const TensorView& hidden_states_f32, const TensorView& input_ids,
                                   const TensorView& topk_ids,
                                   const TensorView& topk_weights) const {
  const Logits truth = logits(hidden_states_f32);
  const Choice exact = choose(truth.values, input_ids);
  const Choice favourable = choose(nudged(truth, topk_ids), input_ids);
  const int64_t top_k = topk_ids.extent(1);
  for (int64_t t = 0; t < topk_ids.extent(0); ++t) {
    const auto given = sorted_row(topk_ids, t);
    const bool is_exact = given == sorted_row(exact.ids.view(), t);
    if (!is_exact && given != sorted_row(favourable.ids.view(), t)) {
      return fmt::format("token {}: experts {} are not the best {} of the double logits", t,
                         fmt::join(given, " "), top_k);
    }
    const Choice& expected = is_exact ? exact : favourable;
    const auto logit = truth.tolerance.begin() + static_cast<std::ptrdiff_t>(t * num_experts_);
    const double tolerance =
        4 * *std::max_element(logit, logit + static_cast<std::ptrdiff_t>(num_experts_)) +
        kWeightTolerance;
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t pair = t * top_k + k;
      const auto* ids = expected.ids.as<int32_t>() + t * top_k;
      const auto* same = std::find(ids, ids + top_k, topk_ids.as<int32_t>()[pair]);
      const double want = expected.weights.as<float>()[t * top_k + (same - ids)];
      const double got = topk_weights.as<float>()[pair];
      if (!(std::abs(got - want) <= tolerance * std::abs(want))) {
        return fmt::format("token {}: weight of expert {} is {}, not {}", t, *same, got, want);
      }
    }
  }
  return "";
}

bool RouterTruth::can_tie() const {
  const RoutingSpec& routing = spec_.routing;
  const int64_t candidates = num_experts_ / routing.num_groups * routing.topk_groups;
  return !routing.hash && spec_.routed_top_k() < candidates;
}

void RouterTruth::make_near_ties(const TensorView& hidden_states_f32) const {
  const int64_t num_tokens = hidden_states_f32.extent(0);
  const std::vector<double> start = logits(hidden_states_f32).values;
  const Choice ranked = choose(start, {}, 1);
  const int64_t last = spec_.routed_top_k();
  // Along direction w_a - w_b the logit of a falls against that of b.
  const HostTensor direction(DataType::kF32, {num_tokens, hidden_size_});
  std::vector<std::pair<int32_t, int32_t>> rivals;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const auto* ids = ranked.ids.as<int32_t>() + t * ranked.ids.view().extent(1);
    rivals.emplace_back(ids[last - 1], ids[last]);
    for (int64_t h = 0; h < hidden_size_; ++h) {
      direction.as<float>()[t * hidden_size_ + h] = row(ids[last - 1])[h] - row(ids[last])[h];
    }
  }
  const std::vector<double> slope = logits(direction.view()).values;
  std::vector<double> low(rivals.size(), 0.0);
  std::vector<double> high(rivals.size());
  for (size_t t = 0; t < rivals.size(); ++t) {
    const size_t base = t * static_cast<size_t>(num_experts_);
    const size_t a = base + static_cast<size_t>(rivals[t].first);
    const size_t b = base + static_cast<size_t>(rivals[t].second);
    // Twice the step that makes the logits equal: with a selection bias the tie lies elsewhere.
    high[t] = 2 * (start[a] - start[b]) / (slope[a] - slope[b]);
  }
  std::vector<double> trial(start.size());
  for (int step = 0; step < 50; ++step) {
    for (size_t i = 0; i < trial.size(); ++i) {
      const size_t t = i / static_cast<size_t>(num_experts_);
      trial[i] = start[i] - 0.5 * (low[t] + high[t]) * slope[i];
    }
    const Choice choice = choose(trial, {});
    for (size_t t = 0; t < rivals.size(); ++t) {
      const bool before =
          sorted_row(choice.ids.view(), static_cast<int64_t>(t)).contains(rivals[t].first);
      (before ? low[t] : high[t]) = 0.5 * (low[t] + high[t]);
    }
  }
  for (int64_t i = 0; i < num_tokens * hidden_size_; ++i) {
    const double step = low[static_cast<size_t>(i / hidden_size_)];
    hidden_states_f32.as<float>()[i] -= static_cast<float>(step * direction.as<float>()[i]);
  }
}

}  // namespace switchyard::cli
