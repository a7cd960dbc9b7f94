#pragma once
// The activations as the field writes them, in long double: the truth for every test of them.

#include <cmath>
#include <vector>

#include "switchyard/layer_spec.h"

namespace switchyard::test {

inline long double activation_formula(const ActivationSpec& s, long double g, long double u) {
  using Real = long double;
  constexpr Real kPi = 3.14159265358979323846264338327950288L;
  const auto logistic = [](Real x) { return 1 / (1 + std::exp(-x)); };
  const auto clip = [](Real x, Real bound) { return std::fmin(std::fmax(x, -bound), bound); };
  const Real limit = s.limit;
  switch (s.kind) {
    case Activation::kSwiGlu: return g * logistic(g) * u;
    case Activation::kSwiGluClamp: {
      const Real c = std::fmin(g, limit);
      return c * logistic(c) * clip(u, limit);
    }
    case Activation::kSwiGluOai: {
      const Real c = std::fmin(g, limit);
      return c * logistic(Real(s.alpha) * c) * (clip(u, limit) + 1);
    }
    case Activation::kGeGluTanh: {
      const Real y = std::sqrt(2 / kPi) * (g + 0.044715L * g * g * g);
      // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2y)), which has digits left when tanh(y) is near -1.
      return g * logistic(2 * y) * u;
    }
    case Activation::kGeGlu: return 0.5L * g * std::erfc(-g / std::sqrt(2.0L)) * u;
    case Activation::kSiTu: {
      const Real b = s.beta, lb = s.linear_beta;
      return b * std::tanh(g / b) * logistic(g) * (lb == 0 ? u : lb * std::tanh(u / lb));
    }
    case Activation::kRelu2: return u > 0 ? u * u : 0;
  }
  return NAN;
}

/// Every kind, and second settings of those that have any.
inline std::vector<ActivationSpec> all_activations() {
  std::vector<ActivationSpec> specs;
  for (int kind = 0; kind <= static_cast<int>(Activation::kRelu2); ++kind) {
    specs.push_back({.kind = static_cast<Activation>(kind)});
  }
  specs.push_back({.kind = Activation::kSwiGluClamp, .limit = 10.0f});
  specs.push_back({.kind = Activation::kSwiGluOai, .alpha = 1.0f, .limit = 3.5f});
  specs.push_back({.kind = Activation::kSiTu, .beta = 1.5f, .linear_beta = 0.0f});
  return specs;
}

}  // namespace switchyard::test
