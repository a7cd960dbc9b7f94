#pragma once
// A second truth: the whole block written down from its definition, element by element, sharing no
// code with any backend but the decoding of a stored element.

#include <vector>

#include "support/buffer.h"
#include "switchyard/weights.h"

namespace switchyard::test {

/// output [T, H] as f64 for the given routing; ids that are no expert are skipped.
Buffer naive_forward(const LayerSpec& spec, const Weights& weights, const TensorView& hidden,
                     const TensorView& topk_ids, const TensorView& topk_weights);

/// hidden . projection^T as f64 [T, E], after the router's own norm when it has one.
Buffer naive_logits(const Weights& weights, const TensorView& hidden);

}  // namespace switchyard::test
