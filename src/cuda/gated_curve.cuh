#pragma once
// Activations on the special function unit, for whoever has gate and up in registers.

#include <limits>

#include "core/activation.h"

namespace switchyard::cuda {

/// gate and up to the intermediate as one formula for most kinds:
/// g = min(gate, gate_limit), u = clamp(up, up_limit): g * sigmoid(g * (slope + cubic g^2)) *
/// (u + shift).
struct GatedCurve {
  float gate_limit = 0, up_limit = 0, slope = 0, cubic = 0, shift = 0;
};
SWITCHYARD_HOST_DEVICE constexpr bool is_curve(Activation kind) {
  return kind != Activation::kGeGlu && kind != Activation::kSiTu && kind != Activation::kRelu2;
}
/// Of the kinds that is_curve.
inline GatedCurve curve_of(const ActivationSpec& spec) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kTwoSqrt2OverPi = 1.59576912160573071176f;
  GatedCurve curve{.gate_limit = kInfinity, .up_limit = kInfinity, .slope = 1.0f};
  const bool clamps = spec.kind == Activation::kSwiGluClamp || spec.kind == Activation::kSwiGluOai;
  if (clamps) curve.gate_limit = curve.up_limit = spec.limit;
  if (spec.kind == Activation::kSwiGluOai) curve.slope = spec.alpha, curve.shift = 1.0f;
  if (spec.kind == Activation::kGeGluTanh) {
    curve.slope = kTwoSqrt2OverPi;
    curve.cubic = kTwoSqrt2OverPi * 0.044715f;
  }
  return curve;
}

#if defined(__CUDACC__)
/// 1 / (1 + exp(-x)) by the special function unit: within 3 ulp for |x| < 8.
__device__ __forceinline__ float fast_sigmoid(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -kLog2e));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
  return result;
}
/// silu(gate) * up. A factor that reached 0 wins, as in core/activation.h.
__device__ __forceinline__ float swiglu(float gate, float up) {
  const float factor = fast_sigmoid(gate);
  return (factor == 0.0f ? 0.0f : gate * factor) * up;
}
/// NaN passes, as in core/activation.h.
__device__ __forceinline__ float gated_value(const GatedCurve& c, float gate, float up) {
  const float g = activation::at_most(gate, c.gate_limit);
  const float u = activation::clamp(up, c.up_limit);
  const float factor = fast_sigmoid(g * fmaf(c.cubic, g * g, c.slope));
  return (factor == 0.0f ? 0.0f : g * factor) * (u + c.shift);
}
/// Any kind, for code that is not made for one.
__device__ inline float activate_one(const ActivationSpec& spec, const GatedCurve& curve,
                                     float gate, float up) {
  switch (spec.kind) {
    case Activation::kSwiGlu: return swiglu(gate, up);
    case Activation::kGeGlu:
    case Activation::kSiTu:
    case Activation::kRelu2: return apply_activation(spec, gate, up);
    default: return gated_value(curve, gate, up);
  }
}
/// Calls each(f) once, where f(gate, up) is a gated activation: the choice is made outside of the
/// loop in `each`.
template <class Each>
__device__ __forceinline__ void with_activation(ActivationSpec spec, const GatedCurve& curve,
                                                const Each& each) {
  switch (spec.kind) {
    case Activation::kSwiGlu:  // a third of the curve's instructions
      return each([](float g, float u) { return swiglu(g, u); });
    case Activation::kGeGlu:
      spec.kind = Activation::kGeGlu;
      return each([&](float g, float u) { return apply_activation(spec, g, u); });
    case Activation::kSiTu:
      spec.kind = Activation::kSiTu;
      return each([&](float g, float u) { return apply_activation(spec, g, u); });
    default: return each([&](float g, float u) { return gated_value(curve, g, u); });
  }
}
#endif

}  // namespace switchyard::cuda
