// Activations against formulas as the field writes them, and their limits.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/activation.h"
#include "support/activation_formula.h"

namespace switchyard {
namespace {

using Real = long double;
/// Eight roundings, plus one unit of argument error in exp(-a), whose relative effect is a.
template <class T>
Real tolerance(const ActivationSpec& s, Real g, Real u, Real want) {
  Real a = std::fabs(g);
  if (s.kind == Activation::kSwiGluOai) a *= s.alpha;
  if (s.kind == Activation::kGeGlu) a = g * g;
  if (s.kind == Activation::kGeGluTanh) a = 4 * (a + 0.1L * a * a * a);
  const Real eps = std::numeric_limits<T>::epsilon();
  // An underflowing factor costs at most its smallest normal number times the other operands.
  const Real tiny = std::numeric_limits<T>::min();
  return eps * (8 + a) * std::fabs(want) + tiny * (1 + std::fabs(g)) * (1 + std::fabs(u));
}

template <class T>
class ActivationOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ActivationOf, Scalars);

TYPED_TEST(ActivationOf, MatchesTheFormula) {
  using T = TypeParam;
  std::mt19937 random(1);
  std::vector<T> values{T(0), T(-0.0), T(1e-30), T(-1e-30), T(7), T(-7), T(10), T(-10), T(88)};
  for (int i = 0; i < 150; ++i) {
    const double magnitude = std::pow(10.0, std::uniform_real_distribution<>(-4, 2.5)(random));
    values.push_back(static_cast<T>(i % 2 != 0 ? magnitude : -magnitude));
  }
  for (const ActivationSpec& spec : test::all_activations()) {
    for (const T g : values) {
      for (const T u : values) {
        const Real want = test::activation_formula(spec, g, u);
        const Real got = apply_activation<T>(spec, g, u);
        ASSERT_NEAR(double(got), double(want), double(tolerance<T>(spec, g, u, want)))
            << "kind " << static_cast<int>(spec.kind) << " gate " << g << " up " << u;
      }
    }
  }
}

TYPED_TEST(ActivationOf, HugeGatesReachTheirLimits) {
  using T = TypeParam;
  constexpr T kInf = std::numeric_limits<T>::infinity();
  constexpr T kMax = std::numeric_limits<T>::max();
  const T u = T(-2.5);
  for (const ActivationSpec& spec : test::all_activations()) {
    if (!spec.gated()) continue;
    const bool bounded = spec.kind == Activation::kSwiGluClamp ||
                         spec.kind == Activation::kSwiGluOai || spec.kind == Activation::kSiTu;
    for (const T big : {T(1e30), kMax, kInf}) {
      const int kind = static_cast<int>(spec.kind);
      EXPECT_EQ(apply_activation<T>(spec, -big, u), T(0)) << kind << " gate " << -big;
      const T positive = apply_activation<T>(spec, big, T(0.25));
      if (bounded) {
        const T limit = spec.kind == Activation::kSiTu ? T(100) : T(spec.limit);
        EXPECT_EQ(positive, apply_activation<T>(spec, limit * 10, T(0.25))) << kind;
      } else {
        EXPECT_EQ(positive, big * T(0.25)) << kind << " gate " << big;
      }
    }
  }
  const ActivationSpec relu2{.kind = Activation::kRelu2};
  EXPECT_EQ(apply_activation<T>(relu2, T(0), -kInf), T(0));
  EXPECT_EQ(apply_activation<T>(relu2, T(0), kInf), kInf);
}

TYPED_TEST(ActivationOf, NaNIsNotClampedAway) {
  using T = TypeParam;
  constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  for (const ActivationSpec& spec : test::all_activations()) {
    EXPECT_TRUE(std::isnan(apply_activation<T>(spec, T(1), kNaN))) << static_cast<int>(spec.kind);
    if (spec.gated()) {
      EXPECT_TRUE(std::isnan(apply_activation<T>(spec, kNaN, T(1)))) << static_cast<int>(spec.kind);
    }
  }
}

TYPED_TEST(ActivationOf, NonGatedIgnoresTheGate) {
  using T = TypeParam;
  const ActivationSpec relu2{.kind = Activation::kRelu2};
  const T kNaN = std::numeric_limits<T>::quiet_NaN();
  EXPECT_EQ(apply_activation<T>(relu2, kNaN, T(3)), T(9));
  EXPECT_EQ(apply_activation<T>(relu2, kNaN, T(-3)), T(0));
}

}  // namespace
}  // namespace switchyard
