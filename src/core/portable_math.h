#pragma once
// exp and log from additions, products and quotients alone: the same bits on every machine,
// compiler and device, which libm does not promise. Routing uses them, so every backend chooses the
// same experts; plain loops over them vectorise.

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace switchyard {

/// a * b + c in two roundings; nvcc would fuse the bare expression.
SWITCHYARD_HOST_DEVICE inline float mul_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

/// condition ? a : b by masks: gcc turns the bare expression into a branch around the computation
/// of b, and then does not vectorise the loop it is in.
SWITCHYARD_HOST_DEVICE inline float select(bool condition, float a, float b) {
  const uint32_t mask = condition ? ~0u : 0u;
  return __builtin_bit_cast(
      float, (__builtin_bit_cast(uint32_t, a) & mask) | (__builtin_bit_cast(uint32_t, b) & ~mask));
}

SWITCHYARD_HOST_DEVICE inline double select(bool condition, double a, double b) {
  return condition ? a : b;
}

/// exp(x) for x <= 0 within 1.3 units in the last place; 0 below -87, where subnormal results and
/// with them the flush-to-zero mode of the thread would begin to matter. NaN stays NaN.
SWITCHYARD_HOST_DEVICE inline float exp_nonpositive(float x) {
  constexpr float kLowest = -87.0f;
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;  // nine bits: its product with a small integer is exact
  constexpr float kLn2Low = -2.12194440054690583e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

  const float shifted = mul_add(x, kLog2e, kRound);
  const float n = shifted - kRound;
  const float r = mul_add(n, -kLn2Low, mul_add(n, -kLn2High, x));  // |r| <= ln(2) / 2
  float sum = 1.0f / 5040.0f;  // Taylor to r^7; the next term is 5e-9
  sum = mul_add(sum, r, 1.0f / 720.0f);
  sum = mul_add(sum, r, 1.0f / 120.0f);
  sum = mul_add(sum, r, 1.0f / 24.0f);
  sum = mul_add(sum, r, 1.0f / 6.0f);
  sum = mul_add(sum, r, 0.5f);
  sum = mul_add(mul_add(sum, r, 1.0f), r, 1.0f);
  const uint32_t exponent =
      __builtin_bit_cast(uint32_t, shifted) - __builtin_bit_cast(uint32_t, kRound) + 127u;
  const float power = __builtin_bit_cast(float, exponent << 23);
  return select(x < kLowest, 0.0f, sum * power);
}
SWITCHYARD_HOST_DEVICE inline double exp_nonpositive(double x) { return std::exp(x); }

/// log((1 + s) / (1 - s)) = 2 atanh(s) for 0 <= s <= 1/3; log(1 + z) for s = z / (2 + z), within 3
/// units in the last place.
SWITCHYARD_HOST_DEVICE inline float log_of_ratio(float s) {
  const float q = s * s;     // at most 1/9
  float sum = 1.0f / 15.0f;  // the next term is 3e-8 of the sum
  sum = mul_add(sum, q, 1.0f / 13.0f);
  sum = mul_add(sum, q, 1.0f / 11.0f);
  sum = mul_add(sum, q, 1.0f / 9.0f);
  sum = mul_add(sum, q, 1.0f / 7.0f);
  sum = mul_add(sum, q, 1.0f / 5.0f);
  sum = mul_add(sum, q, 1.0f / 3.0f);
  return 2.0f * mul_add(sum * q, s, s);
}

/// 1 / (1 + exp(-x)) without overflow: the exponential is of -|x|.
template <class T>
SWITCHYARD_HOST_DEVICE inline T sigmoid(T x) {
  const T z = exp_nonpositive(-std::abs(x));
  return (x < T(0) ? z : T(1)) / (T(1) + z);
}

}  // namespace switchyard
