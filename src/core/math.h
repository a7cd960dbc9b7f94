#pragma once
// Integer helpers.

#include <cstdint>

#include "core/host_device.h"

namespace switchyard {

template <class T>
SWITCHYARD_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
SWITCHYARD_HOST_DEVICE constexpr T align_up(T value, T alignment) {
  return ceil_div(value, alignment) * alignment;
}

/// Quotients by a divisor that a kernel is launched with: a multiplication and two shifts, exact
/// for numbers below 2^31.
struct Divider {
  uint32_t divisor = 1, factor = uint32_t{1} << 31, shift = 0;

  constexpr Divider() = default;
  constexpr explicit Divider(uint32_t by) : divisor(by) {
    while ((uint64_t{1} << shift) < by) ++shift;
    factor = static_cast<uint32_t>(ceil_div<uint64_t>(uint64_t{1} << (31 + shift), by));
  }
  SWITCHYARD_HOST_DEVICE constexpr uint32_t quotient(uint32_t number) const {
    return static_cast<uint32_t>(uint64_t{2 * number} * factor >> 32) >> shift;
  }
};

}  // namespace switchyard
