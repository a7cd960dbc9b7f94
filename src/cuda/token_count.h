#pragma once
// How many tokens a step really has: known on the host, or read on the device so that a captured
// graph can be replayed with another count.

#include <cstdint>

#include "core/host_device.h"

namespace switchyard::cuda {

struct TokenCount {
  int64_t limit = 0;                   ///< tokens that the buffers hold
  const int32_t* on_device = nullptr;  ///< null: limit
  int64_t skipped = 0;                 ///< tokens before this step's first row (a chunk of a batch)

  SWITCHYARD_HOST_DEVICE int64_t value() const {
    if (on_device == nullptr) return limit;
    const int64_t left = static_cast<int64_t>(*on_device) - skipped;
    return left < 0 ? 0 : left < limit ? left : limit;
  }
};

}  // namespace switchyard::cuda
