#pragma once
// A batch whose tokens chose at random, sorted by the reference.

#include "backend.h"
#include "core/expert_sort.h"
#include "support/buffer.h"
#include "support/random.h"
#include "support/random_weights.h"

namespace switchyard::test {

/// Host tensors of a sorted batch.
struct SortedBatch {
  SortedBatch(Random& random, int64_t tokens, int64_t top_k, int64_t experts, int64_t unit)
      : ids_in(random_topk_ids(random, tokens, top_k, experts)),
        weights_in(random_topk_weights(random, tokens, top_k)) {
    const int64_t rows = sort_capacity(tokens, top_k, experts, unit);
    ids = Buffer(DataType::kI32, {rows});
    weights = Buffer(DataType::kF32, {rows});
    expert_ids = Buffer(DataType::kI32, {rows / unit});
    num_valid = Buffer(DataType::kI32, {2});
    reference_backend().sort({.topk_ids = ids_in,
                              .topk_weights = weights_in,
                              .num_experts = experts,
                              .unit_size = unit,
                              .sorted_ids = ids,
                              .sorted_weights = weights,
                              .sorted_expert_ids = expert_ids,
                              .num_valid_ids = num_valid},
                             {});
  }
  Buffer ids_in, weights_in, ids, weights, expert_ids, num_valid;
};

}  // namespace switchyard::test
