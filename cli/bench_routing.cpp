#include "cli/bench_routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/random.h"

namespace switchyard::cli {

void fill_router_logits(const TensorView& logits, double skew, uint64_t popularity_seed,
                        uint64_t draw_seed) {
  const int64_t num_experts = logits.extent(1);
  std::vector<double> log_popularity(static_cast<size_t>(num_experts));
  for (size_t rank = 0; rank < log_popularity.size(); ++rank) {
    log_popularity[rank] = -skew * std::log(static_cast<double>(rank + 1));
  }
  Random popularity(popularity_seed);
  for (int64_t e = num_experts - 1; e > 0; --e) {
    std::swap(log_popularity[static_cast<size_t>(e)],
              log_popularity[static_cast<size_t>(popularity.below(e + 1))]);
  }
  // The k largest of log p + Gumbel noise are k draws without replacement. A quarter of it keeps
  // the order and keeps a sigmoid router away from 1, where scores would tie.
  Random draw(draw_seed);
  auto* out = logits.as<float>();
  for (int64_t t = 0; t < logits.extent(0); ++t) {
    for (const double log_p : log_popularity) {
      *out++ = static_cast<float>(0.25 * (log_p - std::log(-std::log(draw.uniform()))));
    }
  }
}

std::vector<int32_t> distinct_experts(const TensorView& topk_ids, int64_t num_experts) {
  std::vector<bool> hit(static_cast<size_t>(num_experts));
  const auto* ids = topk_ids.as<int32_t>();
  for (int64_t p = 0; p < topk_ids.num_elements(); ++p) {
    if (ids[p] >= 0 && ids[p] < num_experts) hit[static_cast<size_t>(ids[p])] = true;
  }
  std::vector<int32_t> experts;
  for (int32_t e = 0; e < num_experts; ++e) {
    if (hit[static_cast<size_t>(e)]) experts.push_back(e);
  }
  return experts;
}

double imbalance(const TensorView& topk_ids, int64_t num_experts) {
  std::vector<int64_t> rows(static_cast<size_t>(num_experts));
  const auto* ids = topk_ids.as<int32_t>();
  for (int64_t p = 0; p < topk_ids.num_elements(); ++p) {
    if (ids[p] >= 0 && ids[p] < num_experts) ++rows[static_cast<size_t>(ids[p])];
  }
  const auto total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  if (total == 0) return 1;
  return static_cast<double>(*std::max_element(rows.begin(), rows.end())) *
         static_cast<double>(num_experts) / static_cast<double>(total);
}

void CacheModel::read(int64_t layer, int32_t expert) {
  ++num_reads_;
  const std::pair key{layer, expert};
  const auto found = std::find(recent_.begin(), recent_.end(), key);
  if (found != recent_.end()) {
    ++num_hits_;
    std::rotate(found, found + 1, recent_.end());
    return;
  }
  recent_.push_back(key);
  if (static_cast<int64_t>(recent_.size()) > capacity_) recent_.erase(recent_.begin());
}

double CacheModel::hit_fraction() const {
  return num_reads_ == 0 ? 0 : static_cast<double>(num_hits_) / static_cast<double>(num_reads_);
}

}  // namespace switchyard::cli
