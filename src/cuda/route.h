#pragma once
// Router logits to experts, with the batch as a kernel sees it.

#include "backend.h"
#include "cuda/token_count.h"

namespace switchyard::cuda {

inline constexpr int32_t kMaxRoutedGroups = 128;

struct RouteJob {
  RoutingSpec spec{};
  const void* logits = nullptr;  ///< [T, E]
  DataType logits_type = DataType::kF32;
  const void* logit_bias = nullptr;  ///< [E] or null
  DataType logit_bias_type = DataType::kF32;
  const float* selection_bias = nullptr;    ///< [E] or null
  const float* per_expert_scale = nullptr;  ///< [E] or null
  const void* input_ids = nullptr;          ///< [T], hash layers
  bool input_ids_wide = false;              ///< int64
  const void* tid2eid = nullptr;            ///< [vocab, K], hash layers
  bool tid2eid_wide = false;
  int64_t vocab = 0;
  TokenCount tokens{};
  int32_t num_experts = 0;  ///< without fused shared experts
  int32_t top_k = 0;        ///< likewise
  int32_t num_fused_shared = 0;
  float fused_shared_weight = 1.0f;
  const float* shared_weights = nullptr;  ///< [T] in its place, or null
  int32_t* topk_ids = nullptr;            ///< [T, top_k + num_fused_shared]
  float* topk_weights = nullptr;          ///< likewise
  int32_t* routed_ids = nullptr;          ///< [T, top_k] or null: copies
  float* routed_weights = nullptr;        ///< likewise
};
RouteJob route_job(const RouteRequest& request);

void route(const RouteJob& job, int device, Stream stream);

}  // namespace switchyard::cuda
