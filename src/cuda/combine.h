#pragma once
// The weighted sum over a token's slots, with the batch as a kernel sees it.

#include "cuda/token_count.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda {

struct CombineJob {
  const void* expert_output = nullptr;  ///< [T, K, H]
  DataType input_type = DataType::kF32;
  /// Nobody reads expert_output after this sum.
  bool last_reader = false;
  const int32_t* topk_ids = nullptr;  ///< [T, K] or null
  /// The ids were there before the previous kernel in the stream let this one start.
  bool ids_ready = false;
  const int32_t* expert_mask = nullptr;  ///< [E] or null
  int32_t num_experts = 0;
  const float* topk_weights = nullptr;  ///< [T, K] or null: already applied
  const void* addend = nullptr;         ///< [T, H] or null
  DataType addend_type = DataType::kF32;
  const void* residual = nullptr;  ///< [T, H] or null
  DataType residual_type = DataType::kF32;
  TokenCount tokens{};
  int32_t top_k = 0;
  int64_t width = 0;  ///< H
  void* output = nullptr;
  DataType output_type = DataType::kF32;
};
void combine(const CombineJob& job, Stream stream);

}  // namespace switchyard::cuda
