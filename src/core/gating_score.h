#pragma once
// What one router logit is worth. Portable f32 arithmetic: the same scores on every backend.

#include <cfloat>
#include <cstdint>

#include "core/portable_math.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

/// NaN counts as the lowest finite number and infinities as the largest, so scores stay finite.
SWITCHYARD_HOST_DEVICE inline float finite_logit(float logit) {
  if (logit >= FLT_MAX) return FLT_MAX;
  return logit > -FLT_MAX ? logit : -FLT_MAX;  // NaN compares false
}

/// log(1 + exp(x)).
SWITCHYARD_HOST_DEVICE inline float softplus(float x) {
  const float z = exp_nonpositive(-std::abs(x));
  return (x > 0 ? x : 0.0f) + log_of_ratio(z / (2.0f + z));
}

/// sqrt(softplus(x)). Below -17 it is exp(x / 2) to the last bit, which underflows much later.
SWITCHYARD_HOST_DEVICE inline float sqrt_softplus(float x, float softplus_of_x) {
  return x < -17.0f ? exp_nonpositive(0.5f * x) : std::sqrt(softplus_of_x);
}

/// Score of a finite logit; for softmax the numerator, scaled by exp(-max_logit).
SWITCHYARD_HOST_DEVICE inline float gating_score(Scoring scoring, float logit, float max_logit) {
  switch (scoring) {
    case Scoring::kSoftmax: return exp_nonpositive(logit - max_logit);
    case Scoring::kSigmoid: return sigmoid(logit);
    case Scoring::kSqrtSoftplus: break;
  }
  return sqrt_softplus(logit, softplus(logit));
}

/// The same for a row, in plain loops that vectorise (but for the square root).
SWITCHYARD_HOST_DEVICE inline void gating_scores(Scoring scoring, const float* logits, int64_t n,
                                                 float max_logit, float* scores) {
  switch (scoring) {
    case Scoring::kSoftmax:
      for (int64_t i = 0; i < n; ++i) scores[i] = exp_nonpositive(logits[i] - max_logit);
      return;
    case Scoring::kSigmoid:
      for (int64_t i = 0; i < n; ++i) scores[i] = sigmoid(logits[i]);
      return;
    case Scoring::kSqrtSoftplus:
      for (int64_t i = 0; i < n; ++i) scores[i] = softplus(logits[i]);
      for (int64_t i = 0; i < n; ++i) scores[i] = sqrt_softplus(logits[i], scores[i]);
      return;
  }
}

/// Largest of n finite values; eight partial results vectorise.
SWITCHYARD_HOST_DEVICE inline float max_of(const float* values, int64_t n) {
  constexpr int kLanes = 8;
  float lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = values[0];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
    }
  }
  float best = lanes[0];
  for (const float lane : lanes) best = lane > best ? lane : best;
  for (; i < n; ++i) best = values[i] > best ? values[i] : best;
  return best;
}

/// Sum of n values in 32 interleaved partial sums, then halves onto halves: an order that SIMD
/// registers and a warp can both follow.
SWITCHYARD_HOST_DEVICE inline float lane_sum(const float* values, int64_t n) {
  constexpr int kLanes = 32;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  }
  for (int lane = 0; i < n; ++lane, ++i) lanes[lane] += values[i];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace switchyard
