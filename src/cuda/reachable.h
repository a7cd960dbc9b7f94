#pragma once
// Refuses memory that kernels cannot reach: a fault on the device would be sticky and late.

#include "switchyard/tensor.h"

namespace switchyard::cuda {

/// Throws kInvalidArgument unless the current device can read `tensor`; empty is fine.
void require_reachable(const char* name, const TensorView& tensor);

}  // namespace switchyard::cuda
