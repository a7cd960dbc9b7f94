#include "cli/router_truth.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "switchyard/ops.h"

namespace switchyard::cli {
namespace {

// Of a weight, beside what the logits' own tolerance allows: exponentials and the sum in f32, which
// may flush what is too small to matter.
constexpr double kWeightTolerance = 1e-5;
constexpr double kNegligibleWeight = 1e-30;

/// A stored [N] vector of any float type in f32; empty stays empty.
HostTensor vector_f32(const TensorView& vector) {
  if (vector.empty()) return {};
  const int64_t size = vector.num_elements();
  const HostTensor row =
      convert(TensorView::contiguous(vector.data, vector.type, {1, size}), DataType::kF32);
  HostTensor result(DataType::kF32, {size});
  std::copy_n(row.as<float>(), size, result.as<float>());
  return result;
}

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
      matrix_(DataType::kF32, {num_experts_, hidden_size_}),
      logit_bias_(vector_f32(router.logit_bias)),
      selection_bias_(vector_f32(router.selection_bias)),
      per_expert_scale_(vector_f32(router.per_expert_scale)) {
  ops::dequantize(router.projection, matrix_.view());
  if (router.input_norm_scale.empty()) return;
  const HostTensor scale = vector_f32(router.input_norm_scale);
  for (int64_t i = 0; i < num_experts_ * hidden_size_; ++i) {
    matrix_.as<float>()[i] *= scale.as<float>()[i % hidden_size_];
  }
}

int64_t RouterTruth::vocab_size() const {
  return spec_.routing.hash ? router_->tid2eid.extent(0) : 0;
}

std::vector<double> RouterTruth::dot_products(const TensorView& rows_f32) const {
  std::vector<double> products;
  for (int64_t t = 0; t < rows_f32.extent(0); ++t) {
    const float* x = rows_f32.as<float>() + t * hidden_size_;
    for (int64_t e = 0; e < num_experts_; ++e) {
      double sum = 0;
      for (int64_t h = 0; h < hidden_size_; ++h) sum += double{x[h]} * row(e)[h];
      products.push_back(sum);
    }
  }
  return products;
}

RouterTruth::Logits RouterTruth::logits(const TensorView& hidden_states_f32) const {
  Logits result{.values = dot_products(hidden_states_f32), .tolerance = {}, .factors = {}};
  // A sum of H products in f32: each partial sum is off by half an ulp, errors add like a walk; 4
  // covers the walk's tail and a normed input.
  const double ulps = 4 * 0x1p-24 * (std::sqrt(static_cast<double>(hidden_size_)) + 1);
  for (int64_t t = 0; t < hidden_states_f32.extent(0); ++t) {
    const float* x = hidden_states_f32.as<float>() + t * hidden_size_;
    double squares = 0;
    for (int64_t h = 0; h < hidden_size_; ++h) squares += double{x[h]} * x[h];
    const double mean_square = squares / static_cast<double>(hidden_size_);
    const double factor = router_->input_norm_scale.empty()
                              ? 1
                              : 1 / std::sqrt(mean_square + double{router_->input_norm_epsilon});
    result.factors.push_back(factor);
    for (int64_t e = 0; e < num_experts_; ++e) {
      double magnitude = 0;
      for (int64_t h = 0; h < hidden_size_; ++h) magnitude += std::abs(double{x[h]} * row(e)[h]);
      result.values[result.tolerance.size()] *= factor;
      result.tolerance.push_back(magnitude * factor * ulps);
    }
  }
  return result;
}

RouterTruth::Choice RouterTruth::choose(const std::vector<double>& logits,
                                        const TensorView& input_ids, int64_t extra,
                                        const TensorView& selection_bias) const {
  const auto num_tokens = static_cast<int64_t>(logits.size()) / num_experts_;
  const HostTensor rounded(DataType::kF32, {num_tokens, num_experts_});
  std::transform(logits.begin(), logits.end(), rounded.as<float>(),
                 [](double logit) { return static_cast<float>(logit); });
  const int64_t top_k = spec_.top_k + extra;
  Choice choice{.ids = HostTensor(DataType::kI32, {num_tokens, top_k}),
                .weights = HostTensor(DataType::kF32, {num_tokens, top_k})};
  ops::RouteArgs args;
  args.router_logits = rounded.view();
  args.logit_bias = logit_bias_.view();
  args.selection_bias = selection_bias;
  args.per_expert_scale = per_expert_scale_.view();
  args.input_ids = input_ids;
  args.tid2eid = router_->tid2eid;
  args.num_fused_shared = spec_.num_fused_shared;
  args.fused_shared_weight = spec_.fused_shared_weight;
  args.topk_ids = choice.ids.view();
  args.topk_weights = choice.weights.view();
  ops::route(spec_.routing, args, {.backend = BackendKind::kReference});
  return choice;
}

/// The choice for one token after every logit and score has moved within its tolerance in favour of
/// the experts given: chosen ones up; others down, but for those of a chosen one's group. What is
/// in reach of float rounding is then the best choice.
RouterTruth::Choice RouterTruth::favourable_choice(const Logits& logits,
                                                   const TensorView& input_ids,
                                                   const TensorView& topk_ids,
                                                   int64_t token) const {
  const RoutingSpec& routing = spec_.routing;
  const int64_t group_size = num_experts_ / routing.num_groups;
  const auto* ids = topk_ids.as<int32_t>() + token * topk_ids.extent(1);
  const std::set<int64_t> chosen(ids, ids + topk_ids.extent(1));
  std::set<int64_t> groups;
  if (routing.num_groups > 1) {
    for (const int64_t e : chosen) groups.insert(e / group_size);
  }
  // Softmax without a bias keeps the order of the logits; else scores near 1, or their sums with a
  // bias, round to the same float.
  const bool scores_round = !selection_bias_.view().empty() || routing.scoring != Scoring::kSoftmax;
  const HostTensor bias(DataType::kF32, {num_experts_});
  std::vector<double> nudged;
  for (int64_t e = 0; e < num_experts_; ++e) {
    const auto i = static_cast<size_t>(token * num_experts_ + e);
    const int direction = chosen.contains(e) ? 1 : groups.contains(e / group_size) ? 0 : -1;
    const float own = selection_bias_.view().empty() ? 0 : selection_bias_.as<float>()[e];
    nudged.push_back(logits.values[i] + direction * logits.tolerance[i]);
    bias.as<float>()[e] = own + static_cast<float>(direction) * 0x1p-22f * (1 + std::abs(own));
  }
  return choose(nudged, input_ids.empty() ? input_ids : rows_of(input_ids, token, 1), 0,
                scores_round ? bias.view() : TensorView{});
}

std::string RouterTruth::why_wrong(const TensorView& hidden_states_f32, const TensorView& input_ids,
                                   const TensorView& topk_ids,
                                   const TensorView& topk_weights) const {
  const Logits truth = logits(hidden_states_f32);
  const Choice exact = choose(truth.values, input_ids);
  const int64_t top_k = topk_ids.extent(1);
  for (int64_t t = 0; t < topk_ids.extent(0); ++t) {
    const auto given = sorted_row(topk_ids, t);
    const bool is_exact = given == sorted_row(exact.ids.view(), t);
    const Choice favourable =
        is_exact ? Choice{} : favourable_choice(truth, input_ids, topk_ids, t);
    if (!is_exact && given != sorted_row(favourable.ids.view(), 0)) {
      return fmt::format("token {}: experts {} are not the best {} of the double logits", t,
                         fmt::join(given, " "), top_k);
    }
    const Choice& expected = is_exact ? exact : favourable;
    const int64_t expected_row = is_exact ? t : 0;
    const auto logit = truth.tolerance.begin() + static_cast<std::ptrdiff_t>(t * num_experts_);
    const double tolerance =
        4 * *std::max_element(logit, logit + static_cast<std::ptrdiff_t>(num_experts_)) +
        kWeightTolerance;
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t pair = t * top_k + k;
      const auto* ids = expected.ids.as<int32_t>() + expected_row * top_k;
      const auto* same = std::find(ids, ids + top_k, topk_ids.as<int32_t>()[pair]);
      const double want = expected.weights.as<float>()[expected_row * top_k + (same - ids)];
      const double got = topk_weights.as<float>()[pair];
      if (!(std::abs(got - want) <= tolerance * std::abs(want) + kNegligibleWeight)) {
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

std::vector<RouterTruth::Rivals> RouterTruth::rivals_of(const std::vector<double>& logits) const {
  const Choice ranked = choose(logits, {}, 1);
  const int64_t last = spec_.routed_top_k();
  std::vector<Rivals> rivals;
  for (int64_t t = 0; t < ranked.ids.view().extent(0); ++t) {
    const auto* ids = ranked.ids.as<int32_t>() + t * ranked.ids.view().extent(1);
    rivals.push_back({.in = ids[last - 1], .out = ids[last]});
  }
  return rivals;
}

void RouterTruth::make_near_ties(const TensorView& hidden_states_f32) const {
  const Logits start = logits(hidden_states_f32);
  const std::vector<Rivals> rivals = rivals_of(start.values);
  // Along w_in - w_out the logit of `in` falls against that of `out`.
  const HostTensor direction(DataType::kF32,
                             {hidden_states_f32.extent(0), hidden_states_f32.extent(1)});
  for (int64_t i = 0; i < hidden_states_f32.num_elements(); ++i) {
    const Rivals& pair = rivals[static_cast<size_t>(i / hidden_size_)];
    direction.as<float>()[i] = row(pair.in)[i % hidden_size_] - row(pair.out)[i % hidden_size_];
  }
  const std::vector<double> slope = dot_products(direction.view());
  // A norm before the router scales all logits of a token: take it as fixed.
  const auto in_is_chosen = [&](const std::vector<double>& steps) {
    std::vector<double> trial(start.values.size());
    for (size_t i = 0; i < trial.size(); ++i) {
      const size_t t = i / static_cast<size_t>(num_experts_);
      trial[i] = start.values[i] - steps[t] * start.factors[t] * slope[i];
    }
    const Choice choice = choose(trial, {});
    std::vector<bool> chosen;
    for (size_t t = 0; t < rivals.size(); ++t) {
      chosen.push_back(
          sorted_row(choice.ids.view(), static_cast<int64_t>(t)).contains(rivals[t].in));
    }
    return chosen;
  };
  std::vector<double> low(rivals.size(), 0.0);
  std::vector<double> high(rivals.size(), 1e-3);
  for (int doubling = 0; doubling < 30; ++doubling) {
    const std::vector<bool> chosen = in_is_chosen(high);
    for (size_t t = 0; t < high.size(); ++t) high[t] *= chosen[t] ? 2 : 1;
  }
  for (int halving = 0; halving < 50; ++halving) {
    std::vector<double> middle(low.size());
    for (size_t t = 0; t < low.size(); ++t) middle[t] = 0.5 * (low[t] + high[t]);
    const std::vector<bool> chosen = in_is_chosen(middle);
    for (size_t t = 0; t < low.size(); ++t) (chosen[t] ? low : high)[t] = middle[t];
  }
  for (int64_t i = 0; i < hidden_states_f32.num_elements(); ++i) {
    const double step = low[static_cast<size_t>(i / hidden_size_)];
    hidden_states_f32.as<float>()[i] -= static_cast<float>(step * direction.as<float>()[i]);
  }
}

}  // namespace switchyard::cli
