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

}  // namespace switchyard
