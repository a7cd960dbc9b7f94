#pragma once
// The work of a stage as items: some rows of one expert times one panel of its weights.

#include <algorithm>

#include "core/math.h"
#include "cpu/experts_steps.h"

namespace switchyard::cpu {

/// Rows [begin, begin + count) of one expert and one panel of a stage.
struct ExpertItem {
  int64_t expert = -1;  ///< -1: none
  int64_t begin = 0;
  int64_t count = 0;
  int64_t panel = 0;
  ItemClaim::Item claimed{};
};

/// Items in the order of memory: shard by shard, in it expert by expert, panel by panel.
class ExpertItems {
 public:
  /// `chunk_offsets`: room for a number per expert and one more.
  ExpertItems(const Pass& pass, const PackedStage& stage, int32_t* chunk_offsets)
      : pass_(pass), stage_(stage), chunk_offsets_(chunk_offsets) {
    chunk_offsets[0] = 0;
    for (int64_t e = 0; e < pass.panels->num_experts; ++e) {
      const int64_t chunks = ceil_div(pass.rows_of(e), kChunkRows);
      chunk_offsets[e + 1] = chunk_offsets[e] + static_cast<int32_t>(chunks);
    }
  }
  int64_t count(int64_t shard) const {
    return chunk_offsets_[pass_.panels->num_experts] * stage_.panels_of_shard(shard);
  }

  /// The item of a claim. `before`, the thread's last one, is mostly its neighbour: a search for
  /// each costs one token 3 % of its time.
  ExpertItem at(ItemClaim::Item claimed, const ExpertItem& before) const {
    if (!claimed) return {};
    const int64_t num_panels = stage_.panels_of_shard(claimed.shard);
    const int64_t panel = claimed.index % num_panels;
    if (panel != 0 && before.expert >= 0 && claimed.shard == before.claimed.shard &&
        claimed.index == before.claimed.index + 1) {
      ExpertItem item = before;
      item.claimed = claimed;
      ++item.panel;
      return item;
    }
    const int64_t index = claimed.index / num_panels;
    const int32_t* end = chunk_offsets_ + pass_.panels->num_experts + 1;
    const int64_t expert =
        std::upper_bound(chunk_offsets_, end, static_cast<int32_t>(index)) - chunk_offsets_ - 1;
    const int64_t chunk = index - chunk_offsets_[expert];
    // Chunks of equal size rather than a full one and a rest.
    const int64_t rows = pass_.rows_of(expert);
    const int64_t chunks = ceil_div(rows, kChunkRows);
    const int64_t begin = rows * chunk / chunks;
    return {.expert = expert,
            .begin = pass_.expert_offsets[expert] + begin,
            .count = rows * (chunk + 1) / chunks - begin,
            .panel = stage_.first_panel(claimed.shard) + panel,
            .claimed = claimed};
  }

 private:
  const Pass& pass_;
  const PackedStage& stage_;
  const int32_t* chunk_offsets_;
};

}  // namespace switchyard::cpu
