// Every code of every format, and every rounding decision at midpoints and their neighbours,
// against grids built in double from the formats' definitions and searched for the nearest value.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/number_formats.h"

namespace switchyard {
namespace {

enum class Overflow { kInfinity, kSaturate };

struct FloatFormat {
  std::string name;
  int exponent_bits;
  int mantissa_bits;
  uint32_t max_finite_code;
  Overflow overflow;
  uint32_t nan_code;  // of a positive NaN
  float (*decode)(uint32_t code);
  uint32_t (*encode)(float value);  // null: decode only

  int sign_shift() const { return exponent_bits + mantissa_bits; }
  uint32_t infinity_code() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  /// The definition: (-1)^s * 2^(e - bias) * (1 + m / 2^M), or 2^(1 - bias) * m / 2^M when e = 0.
  double magnitude(uint32_t code) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int e = static_cast<int>(code >> mantissa_bits);
    const double fraction =
        std::ldexp(static_cast<double>(code & ((1u << mantissa_bits) - 1)), -mantissa_bits);
    return e == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, e - bias);
  }
};

const std::vector<FloatFormat>& float_formats() {
  static const std::vector<FloatFormat> formats = {
      {"bf16", 8, 7, 0x7f7f, Overflow::kInfinity, 0x7fc0,
       [](uint32_t c) { return bf16_to_f32(static_cast<uint16_t>(c)); },
       [](float v) { return uint32_t{f32_to_bf16(v)}; }},
      {"f16", 5, 10, 0x7bff, Overflow::kInfinity, 0x7e00,
       [](uint32_t c) { return f16_to_f32(static_cast<uint16_t>(c)); },
       [](float v) { return uint32_t{f32_to_f16(v)}; }},
      {"fp8_e4m3", 4, 3, 0x7e, Overflow::kSaturate, 0x7f,
       [](uint32_t c) { return fp8_e4m3_to_f32(static_cast<uint8_t>(c)); },
       [](float v) { return uint32_t{f32_to_fp8_e4m3(v)}; }},
      {"fp8_e5m2", 5, 2, 0x7b, Overflow::kInfinity, 0x7e,
       [](uint32_t c) { return fp8_e5m2_to_f32(static_cast<uint8_t>(c)); }, nullptr},
      {"fp4_e2m1", 2, 1, 0x7, Overflow::kSaturate, 0x7,
       [](uint32_t c) { return fp4_e2m1_to_f32(static_cast<uint8_t>(c)); },
       [](float v) { return uint32_t{f32_to_fp4_e2m1(v)}; }},
  };
  return formats;
}

/// Nearest code by search in a sorted grid, ties to the even code.
class NearestSearch {
 public:
  explicit NearestSearch(const FloatFormat& format) : format_(format) {
    for (uint32_t code = 0; code <= format.max_finite_code; ++code) {
      grid_.push_back(format.magnitude(code));
    }
    // What rounds to infinity is what would round to the next value of an unbounded exponent.
    if (format.overflow == Overflow::kInfinity) grid_.push_back(format.magnitude(grid_size()));
  }

  uint32_t operator()(float value) const {
    const double magnitude = std::fabs(static_cast<double>(value));
    const auto above = std::lower_bound(grid_.begin(), grid_.end(), magnitude);
    uint32_t code = static_cast<uint32_t>(above - grid_.begin());
    if (above == grid_.end()) {
      code = grid_size() - 1;
    } else if (code > 0) {
      const double to_upper = *above - magnitude;
      const double to_lower = magnitude - grid_[code - 1];
      if (to_lower < to_upper || (to_lower == to_upper && code % 2 != 0)) --code;
    }
    return code | (std::signbit(value) ? 1u << format_.sign_shift() : 0u);
  }

 private:
  uint32_t grid_size() const { return static_cast<uint32_t>(grid_.size()); }
  const FloatFormat& format_;
  std::vector<double> grid_;
};

/// Floats at which something may happen: every exponent with mantissas around the rounding edges of
/// all formats, both signs.
std::vector<float> boundary_floats() {
  std::vector<float> values;
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (uint32_t bit = 0; bit <= 23; ++bit) {
      for (int32_t delta = -2; delta <= 2; ++delta) {
        const uint32_t mantissa = ((1u << bit) + static_cast<uint32_t>(delta)) & 0x7fffffu;
        const uint32_t complement = ~mantissa & 0x7fffffu;
        for (uint32_t m : {mantissa, complement}) {
          values.push_back(f32_from_bits(exponent << 23 | m));
          values.push_back(-values.back());
        }
      }
    }
  }
  return values;
}

class EveryFloatFormat : public testing::TestWithParam<FloatFormat> {};
class EveryEncodedFormat : public testing::TestWithParam<FloatFormat> {};

TEST_P(EveryFloatFormat, DecodesEveryCodeToItsDefinition) {
  const FloatFormat& format = GetParam();
  for (uint32_t code = 0; code < 2u << format.sign_shift(); ++code) {
    const uint32_t magnitude_code = code & ((1u << format.sign_shift()) - 1);
    const bool negative = code != magnitude_code;
    const float decoded = format.decode(code);
    ASSERT_EQ(std::signbit(decoded), negative) << format.name << " code " << code;
    if (magnitude_code <= format.max_finite_code) {
      const double expected = format.magnitude(magnitude_code);
      ASSERT_EQ(static_cast<double>(std::fabs(decoded)), expected) << format.name << " " << code;
    } else if (format.overflow == Overflow::kInfinity && magnitude_code == format.infinity_code()) {
      ASSERT_TRUE(std::isinf(decoded)) << format.name << " " << code;
    } else {
      ASSERT_TRUE(std::isnan(decoded)) << format.name << " " << code;
    }
  }
}

TEST_P(EveryEncodedFormat, EncodesEveryValueToItsCode) {
  const FloatFormat& format = GetParam();
  for (uint32_t code = 0; code < 2u << format.sign_shift(); ++code) {
    const float value = format.decode(code);
    if (std::isnan(value)) continue;
    ASSERT_EQ(format.encode(value), code) << format.name;
  }
}

TEST_P(EveryEncodedFormat, RoundsMidpointsToEvenAndNeighboursToNearest) {
  const FloatFormat& format = GetParam();
  const NearestSearch nearest(format);
  for (uint32_t code = 0; code <= format.max_finite_code; ++code) {
    const double midpoint = (format.magnitude(code) + format.magnitude(code + 1)) / 2;
    const float middle = static_cast<float>(midpoint);
    ASSERT_EQ(static_cast<double>(middle), midpoint) << "a midpoint must be a float";
    for (float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
      ASSERT_EQ(format.encode(value), nearest(value)) << format.name << " " << value;
      ASSERT_EQ(format.encode(-value), nearest(-value)) << format.name << " " << -value;
    }
    if (code < format.max_finite_code) {
      ASSERT_EQ(format.encode(middle) % 2, 0u) << format.name << " " << middle;
    }
  }
}

TEST_P(EveryEncodedFormat, RoundsToNearestAtEveryFloatExponent) {
  const FloatFormat& format = GetParam();
  const NearestSearch nearest(format);
  for (float value : boundary_floats()) {
    ASSERT_EQ(format.encode(value), nearest(value)) << format.name << " " << value;
  }
  std::mt19937 random(7);
  for (int i = 0; i < 200000; ++i) {
    const float value = f32_from_bits(static_cast<uint32_t>(random()));
    if (std::isnan(value)) continue;
    ASSERT_EQ(format.encode(value), nearest(value)) << format.name << " " << value;
  }
}

TEST_P(EveryEncodedFormat, EncodesInfinityAndNan) {
  const FloatFormat& format = GetParam();
  const uint32_t sign = 1u << format.sign_shift();
  const uint32_t top =
      format.overflow == Overflow::kInfinity ? format.infinity_code() : format.max_finite_code;
  EXPECT_EQ(format.encode(INFINITY), top);
  EXPECT_EQ(format.encode(-INFINITY), top | sign);
  for (uint32_t payload : {0x1u, 0x200000u, 0x400000u, 0x7fffffu}) {
    for (uint32_t bits : {0x7f800000u | payload, 0xff800000u | payload}) {
      const uint32_t code = format.encode(f32_from_bits(bits));
      if (format.overflow == Overflow::kInfinity) {
        EXPECT_TRUE(std::isnan(format.decode(code))) << format.name << " " << bits;
        EXPECT_EQ((code & sign) != 0, bits >> 31 != 0);
      } else {
        EXPECT_EQ(code, format.nan_code) << format.name << " " << bits;
      }
    }
  }
}

std::vector<FloatFormat> encoded_formats() {
  std::vector<FloatFormat> formats = float_formats();
  std::erase_if(formats, [](const FloatFormat& format) { return format.encode == nullptr; });
  return formats;
}
std::string name_of(const testing::TestParamInfo<FloatFormat>& format) { return format.param.name; }
INSTANTIATE_TEST_SUITE_P(Formats, EveryFloatFormat, testing::ValuesIn(float_formats()), name_of);
INSTANTIATE_TEST_SUITE_P(Formats, EveryEncodedFormat, testing::ValuesIn(encoded_formats()),
                         name_of);

TEST(Fp4E2m1, HasTheEightKnownMagnitudes) {
  const float magnitudes[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  for (uint8_t code = 0; code < 16; ++code) {
    EXPECT_EQ(std::fabs(fp4_e2m1_to_f32(code)), magnitudes[code % 8]);
    EXPECT_EQ(std::signbit(fp4_e2m1_to_f32(code)), code >= 8);
  }
}

TEST(E8m0, DecodesEveryCode) {
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(static_cast<double>(e8m0_to_f32(static_cast<uint8_t>(code))),
              std::ldexp(1.0, code - 127));
  }
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
  EXPECT_EQ(f32_bits(e8m0_to_f32(0)), 0x00400000u);
}

TEST(Int8, RoundsToNearestEvenAndLimits) {
  for (int half_steps = -600; half_steps <= 600; ++half_steps) {
    const float value = static_cast<float>(half_steps) / 2;
    for (float v : {value, std::nextafter(value, INFINITY), std::nextafter(value, -INFINITY)}) {
      const double limited = std::clamp(static_cast<double>(v), -127.0, 127.0);
      ASSERT_EQ(static_cast<double>(f32_to_int8(v)), std::nearbyint(limited)) << v;
      const double limited4 = std::clamp(static_cast<double>(v), -7.0, 7.0);
      ASSERT_EQ(static_cast<double>(int4_to_f32(f32_to_int4(v))), std::nearbyint(limited4)) << v;
    }
  }
  EXPECT_EQ(f32_to_int8(INFINITY), 127);
  EXPECT_EQ(f32_to_int8(-INFINITY), -127);
  EXPECT_EQ(f32_to_int8(NAN), 0);
  EXPECT_EQ(f32_to_int4(NAN), 8);
}

TEST(Int4, DecodesEveryNibbleAndZeroPoint) {
  for (int nibble = 0; nibble < 16; ++nibble) {
    EXPECT_EQ(int4_to_f32(static_cast<uint8_t>(nibble)), static_cast<float>(nibble - 8));
    for (int zero = 0; zero < 16; ++zero) {
      EXPECT_EQ(int4_to_f32(static_cast<uint8_t>(nibble), zero), static_cast<float>(nibble - zero));
    }
  }
}

// ---- E8M0 rounding, by search over exponents in double

/// Smallest (or largest) exponent e in E8M0's range for which `holds`, limited to the range.
template <class Predicate>
int smallest_exponent(Predicate holds) {
  for (int e = -127; e < 127; ++e) {
    if (holds(e)) return e;
  }
  return 127;
}
template <class Predicate>
int largest_exponent(Predicate holds) {
  for (int e = 127; e > -127; --e) {
    if (holds(e)) return e;
  }
  return -127;
}

int expected_exponent(double amax, Format element, ScaleRounding rounding) {
  const bool fp4 = element == Format::kMxfp4;
  const double max = fp4 ? 6.0 : 448.0;
  const int max_exponent = fp4 ? 2 : 8;
  const int mantissa_bits = fp4 ? 1 : 3;
  auto power = [&](int e) { return std::ldexp(1.0, e + max_exponent); };
  switch (rounding) {
    case ScaleRounding::kUp:
      return smallest_exponent([&](int e) { return std::ldexp(max, e) >= amax; });
    case ScaleRounding::kCeil: return smallest_exponent([&](int e) { return power(e) >= amax; });
    case ScaleRounding::kDown: return largest_exponent([&](int e) { return power(e) <= amax; });
    case ScaleRounding::kEven: {
      int exponent;
      const double fraction = std::frexp(amax, &exponent);  // in [0.5, 1): 1 + mantissa_bits bits
      const double rounded = std::ldexp(std::nearbyint(std::ldexp(fraction, 1 + mantissa_bits)),
                                        exponent - 1 - mantissa_bits);
      return largest_exponent([&](int e) { return power(e) <= rounded; });
    }
  }
  return 0;
}

TEST(MxScaleExponent, FollowsEveryRoundingModeAtEveryExponent) {
  for (Format element : {Format::kMxfp4, Format::kMxfp8}) {
    for (ScaleRounding rounding :
         {ScaleRounding::kDown, ScaleRounding::kUp, ScaleRounding::kEven, ScaleRounding::kCeil}) {
      for (float value : boundary_floats()) {
        const float amax = std::fabs(value);
        const int code = mx_scale_exponent(amax, element, rounding);
        ASSERT_EQ(code - 127, expected_exponent(static_cast<double>(amax), element, rounding))
            << amax << " mode " << static_cast<int>(rounding);
      }
    }
  }
}

TEST(MxScaleExponent, UpNeverClipsAndWastesLessThanOneBinade) {
  std::mt19937 random(11);
  for (int i = 0; i < 100000; ++i) {
    const float amax = std::fabs(f32_from_bits(static_cast<uint32_t>(random())));
    if (!std::isfinite(amax)) continue;
    for (auto [element, max] : {std::pair{Format::kMxfp4, 6.0}, {Format::kMxfp8, 448.0}}) {
      const uint8_t code = mx_scale_exponent(amax, element, ScaleRounding::kUp);
      const double scale = std::ldexp(1.0, code - 127);
      ASSERT_LE(static_cast<double>(amax), max * scale) << amax;
      if (code > 0) {
        ASSERT_GT(static_cast<double>(amax), max * scale / 2) << amax;
      }
    }
  }
}

TEST(MxScaleExponent, DefinesTheEdges) {
  for (Format element : {Format::kMxfp4, Format::kMxfp8, Format::kNvfp4, Format::kFp8E4m3}) {
    for (ScaleRounding rounding :
         {ScaleRounding::kDown, ScaleRounding::kUp, ScaleRounding::kEven, ScaleRounding::kCeil}) {
      EXPECT_EQ(mx_scale_exponent(0.0f, element, rounding), 0);
      EXPECT_EQ(mx_scale_exponent(std::numeric_limits<float>::denorm_min(), element, rounding), 0);
      EXPECT_EQ(mx_scale_exponent(NAN, element, rounding), 255);
      EXPECT_EQ(mx_scale_exponent(INFINITY, element, rounding), 255);
      EXPECT_LE(mx_scale_exponent(std::numeric_limits<float>::max(), element, rounding), 254);
      EXPECT_EQ(mx_scale_exponent(-3.0f, element, rounding),
                mx_scale_exponent(3.0f, element, rounding));
    }
  }
}

// ---- loaders

TEST(LoadAsF32, ReadsEveryTypeAtAnyAlignment) {
  alignas(8) unsigned char memory[33] = {};
  auto load_back = [&](auto stored, DataType type) {
    for (size_t offset : {size_t{0}, size_t{1}, size_t{3}}) {
      std::memcpy(memory + offset + sizeof(stored), &stored, sizeof(stored));
      EXPECT_EQ(load_as_f32(memory + offset, type, 1), load_as_f32(&stored, type, 0));
    }
    return load_as_f32(&stored, type, 0);
  };
  EXPECT_EQ(load_back(1.25f, DataType::kF32), 1.25f);
  EXPECT_EQ(load_back(uint16_t{0x3d00}, DataType::kF16), 1.25f);
  EXPECT_EQ(load_back(uint16_t{0xbfa0}, DataType::kBf16), -1.25f);
  EXPECT_EQ(load_back(uint8_t{0x3a}, DataType::kF8E4m3), 1.25f);
  EXPECT_EQ(load_back(uint8_t{0x3d}, DataType::kF8E5m2), 1.25f);
  EXPECT_EQ(load_back(uint8_t{130}, DataType::kF8E8m0), 8.0f);
  EXPECT_EQ(load_back(int8_t{-5}, DataType::kI8), -5.0f);
  EXPECT_EQ(load_back(uint8_t{200}, DataType::kU8), 200.0f);
  EXPECT_EQ(load_back(uint8_t{1}, DataType::kBool), 1.0f);
  EXPECT_EQ(load_back(int16_t{-300}, DataType::kI16), -300.0f);
  EXPECT_EQ(load_back(int32_t{-70000}, DataType::kI32), -70000.0f);
  EXPECT_EQ(load_back(uint32_t{3000000000u}, DataType::kU32), 3.0e9f);
  EXPECT_EQ(load_back(int64_t{-5000000000}, DataType::kI64), -5.0e9f);
  EXPECT_EQ(load_back(1.0 / 3, DataType::kF64), 1.0f / 3);
}

TEST(StoreF32, RoundsToTheTypeAndTouchesOnlyItsElement) {
  const float third = 1.0f / 3;
  for (DataType type :
       {DataType::kF32, DataType::kF64, DataType::kF16, DataType::kBf16, DataType::kF8E4m3}) {
    unsigned char memory[24];
    std::memset(memory, 0xa5, sizeof(memory));
    store_f32(memory, type, 1, third);
    const auto width = static_cast<size_t>(element_bytes(type));
    const double ulp = type == DataType::kF8E4m3 ? 1.0 / 32
                       : type == DataType::kBf16 ? 1.0 / 512
                                                 : 1e-3;
    EXPECT_NEAR(static_cast<double>(load_as_f32(memory, type, 1)), 1.0 / 3, ulp / 2);
    for (size_t i = 0; i < sizeof(memory); ++i) {
      if (i / width != 1) {
        EXPECT_EQ(memory[i], 0xa5) << i;
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
