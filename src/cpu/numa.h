#pragma once
// Memory nodes, and work that stays on them: packed panels are cut into one shard per node, and a
// thread takes the panels of the node it runs on before it helps with the others'. Results do not
// depend on any of it. What it gains was never measured: no machine with two nodes was at hand.

#include <array>
#include <atomic>
#include <cstdint>

namespace switchyard::cpu {

inline constexpr int kMaxNodes = 16;

/// Injectable, so that tests can have nodes.
struct NumaTopology {
  int num_nodes = 1;                ///< at most kMaxNodes
  int (*current_node)() = nullptr;  ///< of the calling thread, in [0, num_nodes)
  /// Wishes that untouched memory, aligned to pages, lie on a node.
  void (*place)(void* data, int64_t bytes, int node) = nullptr;
};

/// This machine's; one node where the system does not say, or counts with gaps.
const NumaTopology& system_topology();

/// The items of a step by shard, to be claimed.
struct ShardedItems {
  /// count(shard) items each.
  template <class Count>
  ShardedItems(int shards, const Count& count) : num_shards(shards) {
    for (int shard = 0; shard < shards; ++shard) counts[static_cast<size_t>(shard)] = count(shard);
  }
  int num_shards;
  std::array<int64_t, kMaxNodes> counts{};
  std::array<std::atomic<int64_t>, kMaxNodes> claimed{};
};

/// Items handed out one by one: first those of the thread's own shard, then the next ones'. A
/// thread knows its next item before it works on the current one, so that it can prefetch what the
/// next one reads.
class ItemClaim {
 public:
  struct Item {
    int shard = 0;
    int64_t index = -1;  ///< in its shard; -1: there is none left
    explicit operator bool() const { return index >= 0; }
  };
  ItemClaim(ShardedItems& items, int node)
      : items_(items), first_(node % items.num_shards), next_(claim()) {}
  Item take() {
    const Item item = next_;
    if (item) next_ = claim();
    return item;
  }
  /// What take() will return.
  Item peek() const { return next_; }

 private:
  Item claim() {
    for (; finished_ < items_.num_shards; ++finished_) {
      const int shard = (first_ + finished_) % items_.num_shards;
      const auto at = static_cast<size_t>(shard);
      const int64_t index = items_.claimed[at].fetch_add(1, std::memory_order_relaxed);
      if (index < items_.counts[at]) return {shard, index};
    }
    return {};
  }

  ShardedItems& items_;
  int first_;
  int finished_ = 0;  // shards without items left
  Item next_;
};

}  // namespace switchyard::cpu
