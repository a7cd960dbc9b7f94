#pragma once
// Experts with 4-bit weights on Hopper: weights in fragment order, converted in registers.

#include "core/activation_format.h"
#include "cuda/pack_weights.h"

namespace switchyard::cuda::sm90 {

/// The order in which the kernels here want the weights; kRowMajor when they cannot take them.
/// MXFP4 becomes exact E4M3 where activations are FP8 numbers, exact bf16 where they are not.
FragmentOrder fragment_order(ActivationFormat activations, const WeightMatrix& up,
                             const WeightMatrix& down, int device);

}  // namespace switchyard::cuda::sm90
