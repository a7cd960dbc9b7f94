#pragma once
// The only argument checker. Every function throws Error{kInvalidArgument, "argument is value;
// rule"} or returns; backends and steps assume that it has returned.

#include "switchyard/tensor.h"

namespace switchyard {

void validate_compare(const TensorView& output, const TensorView& reference);

}  // namespace switchyard
