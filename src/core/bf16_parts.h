#pragma once
// A float as the exact sum of three bf16 numbers, which the matrix unit multiplies.

#include <bit>
#include <cstdint>

#include "core/number_formats.h"

namespace switchyard {

inline constexpr int kBf16Parts = 3;

/// Codes, smallest part first. Exact above 2^-102, where 24 bits leave the last part normal; an
/// infinity or NaN is its own last part.
struct Bf16Parts {
  uint16_t code[kBf16Parts];
};
constexpr Bf16Parts bf16_parts(float value) {
  constexpr uint32_t kExponent = 0x7f800000;
  const auto upper = [](float v) {  // cut, so that no part becomes infinite
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16);
  };
  const uint16_t high = upper(value);
  if ((std::bit_cast<uint32_t>(value) & kExponent) == kExponent) return {{0, 0, high}};
  const float left = value - bf16_to_f32(high);
  const uint16_t middle = upper(left);
  return {{upper(left - bf16_to_f32(middle)), middle, high}};
}

}  // namespace switchyard
