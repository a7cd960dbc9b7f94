// Portable exp, log1p and sigmoid against libm in double.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/portable_math.h"

namespace switchyard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// Error in units in the last place of the rounded truth.
double ulps(float got, double want) {
  const float rounded = static_cast<float>(want);
  return std::fabs(double{got} - want) / double{std::nextafter(rounded, kInf) - rounded};
}

TEST(PortableMath, ExpStaysWithinItsBound) {
  // Every 501st float from -1e-38 down to -87.
  for (uint32_t bits = 0x80800000u; bits <= 0xc2ae0000u; bits += 501) {
    const float x = __builtin_bit_cast(float, bits);
    ASSERT_LE(ulps(exp_nonpositive(x), std::exp(double{x})), 1.3) << "x = " << x;
  }
}

TEST(PortableMath, ExpAtTheEdges) {
  EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(exp_nonpositive(-0.0f), 1.0f);
  EXPECT_GT(exp_nonpositive(-87.0f), std::numeric_limits<float>::min());
  EXPECT_EQ(exp_nonpositive(std::nextafter(-87.0f, -kInf)), 0.0f);
  EXPECT_EQ(exp_nonpositive(-std::numeric_limits<float>::max()), 0.0f);
  EXPECT_EQ(exp_nonpositive(-kInf), 0.0f);
  EXPECT_TRUE(std::isnan(exp_nonpositive(std::numeric_limits<float>::quiet_NaN())));
}

TEST(PortableMath, LogStaysWithinItsBound) {
  for (uint32_t bits = 0x00800000u; bits <= 0x3f800000u; bits += 501) {
    const float z = __builtin_bit_cast(float, bits);
    ASSERT_LE(ulps(log_of_ratio(z / (2.0f + z)), std::log1p(double{z})), 2.0) << "z = " << z;
  }
  EXPECT_EQ(log_of_ratio(0.0f), 0.0f);
}

TEST(PortableMath, SigmoidKeepsItsDigitsOnBothSides) {
  for (float x = -86.9f; x < 100.0f; x += 0.0103f) {
    ASSERT_LE(ulps(sigmoid(x), 1.0 / (1.0 + std::exp(-double{x}))), 3.0) << "x = " << x;
  }
  EXPECT_EQ(sigmoid(-kInf), 0.0f);
  EXPECT_EQ(sigmoid(kInf), 1.0f);
  EXPECT_EQ(sigmoid(0.0f), 0.5f);
}

}  // namespace
}  // namespace switchyard
