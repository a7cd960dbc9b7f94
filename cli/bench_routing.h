#pragma once
// Which experts a benchmark's tokens choose, and how much of that the caches may have kept.

#include <cstdint>
#include <utility>
#include <vector>

#include "cli/host_tensor.h"
#include "switchyard/layer_spec.h"

namespace switchyard::cli {

/// Router logits whose top-k is a draw without replacement from a Zipf distribution with exponent
/// `skew` over the experts (0: uniform). `popularity_seed` decides which experts are popular,
/// `draw_seed` what these tokens choose.
void fill_router_logits(const TensorView& logits, double skew, uint64_t popularity_seed,
                        uint64_t draw_seed);

/// Experts that at least one pair chose, ascending.
std::vector<int32_t> distinct_experts(const TensorView& topk_ids, int64_t num_experts);
/// Rows of the busiest expert over the mean of all experts.
double imbalance(const TensorView& topk_ids, int64_t num_experts);

/// Follows expert-sized reads through a cache of `capacity` experts that evicts the least recently
/// used, and says which fraction of the reads it would have served.
class CacheModel {
 public:
  explicit CacheModel(int64_t capacity) : capacity_(capacity) {}
  void read(int64_t layer, int32_t expert);
  double hit_fraction() const;

 private:
  int64_t capacity_;
  int64_t num_reads_ = 0;
  int64_t num_hits_ = 0;
  std::vector<std::pair<int64_t, int32_t>> recent_;  ///< least recently used first
};

}  // namespace switchyard::cli
