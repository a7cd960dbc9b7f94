#pragma once
// Sorting with the batch as a kernel sees it; ops::sort and the experts both come here.

#include "core/sort_plan.h"
#include "cuda/token_count.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda {

struct SortJob {
  const int32_t* topk_ids = nullptr;      ///< [T, K]
  const int32_t* topk_weights = nullptr;  ///< [T, K] bits of f32, or null: all 1
  const int32_t* expert_mask = nullptr;   ///< [E] or null
  TokenCount tokens{};                    ///< limit is T
  int32_t top_k = 0;
  int32_t num_experts = 0;
  int32_t unit_size = 0;
  int32_t capacity = 0;    ///< rows of sorted_ids, all of them written
  int32_t num_blocks = 0;  ///< entries of sorted_expert_ids
  int32_t num_valid = 0;   ///< entries of num_valid_ids, 1 or 2
  int32_t* sorted_ids = nullptr;
  int32_t* sorted_weights = nullptr;  ///< or null
  int32_t* sorted_expert_ids = nullptr;
  int32_t* num_valid_ids = nullptr;
  int32_t* local_topk_ids = nullptr;  ///< or null
  int32_t* m_indices = nullptr;       ///< or null
  int32_t* reverse_sorted = nullptr;  ///< or null
  void* zeroed = nullptr;             ///< 16-byte aligned, or null
  int64_t zeroed_bytes = 0;
};

/// `scratch` holds plan.workspace_bytes.
void sort(const SortJob& job, const SortPlan& plan, void* scratch, int device, Stream stream);

}  // namespace switchyard::cuda
