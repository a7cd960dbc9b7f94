#pragma once
// Parts of a batch: rows of its tensors, and the choices that a token has.

#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// Rows [begin, begin + count) of a [T, ...] tensor; empty stays empty.
inline TensorView rows_of(TensorView tensor, int64_t begin, int64_t count) {
  if (tensor.empty()) return tensor;
  tensor.data = tensor.as<char>() + begin * tensor.stride(0) * element_bytes(tensor.type);
  tensor.shape[0] = count;
  return tensor;
}

/// K of topk_ids [T, K]; without ids every token takes expert 0.
inline int64_t top_k_of(const TensorView& topk_ids) {
  return topk_ids.empty() ? 1 : topk_ids.extent(1);
}

}  // namespace switchyard
