#pragma once
// The definition of every activation, once for host and device, float and double.
//
// Written as value * factor with a factor in [0, 1] that keeps its relative accuracy on the
// negative side (sigmoid and erfc instead of 1 + tanh and 1 + erf). NaN propagates through every
// clamp.

#include <cmath>

#include "core/host_device.h"
#include "core/portable_math.h"
#include "switchyard/layer_spec.h"

namespace switchyard {

namespace activation {

/// value * factor, where a factor that reached 0 wins: the limit at -infinity is 0, not inf * 0.
template <class T>
SWITCHYARD_HOST_DEVICE inline T attenuate(T value, T factor) {
  return select(factor == T(0), T(0), value * factor);
}

template <class T>
SWITCHYARD_HOST_DEVICE inline T silu(T x) {
  return attenuate(x, sigmoid(x));
}

/// gelu with erf: x * Phi(x).
template <class T>
SWITCHYARD_HOST_DEVICE inline T gelu(T x) {
  constexpr T kInvSqrt2 = T(0.70710678118654752440);
  return attenuate(x, T(0.5) * std::erfc(-x * kInvSqrt2));
}

/// 0.5 x (1 + tanh(y)) = x * sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3).
template <class T>
SWITCHYARD_HOST_DEVICE inline T gelu_tanh(T x) {
  constexpr T kTwoSqrt2OverPi = T(1.59576912160573071176);
  return attenuate(x, sigmoid(kTwoSqrt2OverPi * x * (T(1) + T(0.044715) * x * x)));
}

/// A smooth clamp to +-bound.
template <class T>
SWITCHYARD_HOST_DEVICE inline T soft_clamp(T x, T bound) {
  return bound * std::tanh(x / bound);
}

template <class T>
SWITCHYARD_HOST_DEVICE inline T at_most(T x, T limit) {
  return x > limit ? limit : x;
}

template <class T>
SWITCHYARD_HOST_DEVICE inline T clamp(T x, T limit) {
  return x < -limit ? -limit : at_most(x, limit);
}

}  // namespace activation

/// The formula beside each Activation enumerator. A non-gated kind ignores `gate`.
template <class T>
SWITCHYARD_HOST_DEVICE inline T apply_activation(const ActivationSpec& spec, T gate, T up) {
  namespace act = activation;
  const T limit = T(spec.limit);
  switch (spec.kind) {
    case Activation::kSwiGlu: return act::silu(gate) * up;
    case Activation::kSwiGluClamp:
      return act::silu(act::at_most(gate, limit)) * act::clamp(up, limit);
    case Activation::kSwiGluOai: {
      const T g = act::at_most(gate, limit);
      return act::attenuate(g, sigmoid(T(spec.alpha) * g)) * (act::clamp(up, limit) + T(1));
    }
    case Activation::kGeGluTanh: return act::gelu_tanh(gate) * up;
    case Activation::kGeGlu: return act::gelu(gate) * up;
    case Activation::kSiTu: {
      const T g = act::soft_clamp(gate, T(spec.beta)) * sigmoid(gate);
      return g * (spec.linear_beta == 0.0f ? up : act::soft_clamp(up, T(spec.linear_beta)));
    }
    case Activation::kRelu2: {
      const T positive = up < T(0) ? T(0) : up;
      return positive * positive;
    }
  }
  return T(0);
}

}  // namespace switchyard
