#pragma once
// What the alphas of a dense call choose, as lists of a token's experts.

#include <cstdint>

#include "switchyard/layer.h"

namespace switchyard::cuda {

/// A token's experts whose alpha is not 0, ascending, then -1. One with more than top_k of them has
/// none listed, and a 1 in `crowded`.
struct AlphaChoiceJob {
  const float* alpha = nullptr;  ///< [num_tokens][num_experts]
  int64_t num_tokens = 0;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  int32_t* topk_ids = nullptr;    ///< out [num_tokens][top_k]
  float* topk_weights = nullptr;  ///< out, the alphas; anything beside -1
  int32_t* crowded = nullptr;     ///< out [num_tokens]: 0 or 1
};
void choose_by_alpha(const AlphaChoiceJob& job, Stream stream);

}  // namespace switchyard::cuda
