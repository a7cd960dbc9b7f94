#pragma once
// One matrix applied to every token, as kernels see it, and the kernel for few tokens.

#include "cuda/stored_rows.h"
#include "cuda/token_count.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda {

/// output[t] = [addend[t] +] epilogue(W . input[t] + bias)
struct LinearJob {
  WeightRows weights{};
  const void* input = nullptr;  ///< [T][num_cols]
  DataType input_type = DataType::kF32;
  TokenCount tokens{};
  bool sigmoid = false;
  const float* addend = nullptr;  ///< [T][num_rows] or null
  void* output = nullptr;         ///< [T][num_rows]
  DataType output_type = DataType::kF32;
};

/// Whether these weights are f32, bf16 or f16 numbers as they are.
bool is_plain(const WeightRows& weights);

/// Dot products on any GPU, for plain weights. A block's threads share a row's columns, eight
/// neighbours each; their sums are added in an order that nothing else changes.
void linear_dot(const LinearJob& job, Stream stream);

}  // namespace switchyard::cuda
