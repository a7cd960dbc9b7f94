#pragma once
// Memory nodes, and work that stays on them: packed panels are cut into one shard per node, and a
// thread takes the panels of the node it runs on before it helps with the others'. Results do not
// depend on any of it. What it gains was never measured: no machine with two nodes was at hand.

#include <algorithm>
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

/// The items of a step by shard, to be claimed by `threads` of them.
struct ShardedItems {
  /// count(shard) items each.
  template <class Count>
  ShardedItems(int shards, int threads, const Count& count)
      : num_shards(shards), num_threads(threads) {
    for (int shard = 0; shard < shards; ++shard) counts[static_cast<size_t>(shard)] = count(shard);
  }
  int num_shards;
  int num_threads;
  std::array<int64_t, kMaxNodes> counts{};
  std::array<std::atomic<int64_t>, kMaxNodes> claimed{};
};

/// Items of one thread: first of its own shard, then of the next ones. A thread claims a run of
/// neighbours, shorter as the end comes near, because the hardware's prefetcher starts anew where
/// memory does not go on. It knows its next item before it works on the current ones, so that it
/// can prefetch what the next one reads.
class ItemClaim {
 public:
  struct Item {
    int shard = 0;
    int64_t index = -1;  ///< in its shard; -1: there is none left
    int64_t count = 0;   ///< this one and its successors
    explicit operator bool() const { return index >= 0; }
  };
  ItemClaim(ShardedItems& items, int node)
      : items_(items), first_(node % items.num_shards), next_(claim()) {}
  /// At most `most` neighbours.
  Item take(int64_t most = 1) {
    Item item = next_;
    if (!item) return item;
    item.count = std::min(item.count, most);
    next_.index += item.count;
    next_.count -= item.count;
    if (next_.count == 0) next_ = claim();
    return item;
  }
  /// What take() will return.
  Item peek() const { return next_; }

 private:
  Item claim() {
    constexpr int kRuns = 2;  // of a thread, if all claimed at once
    for (; finished_ < items_.num_shards; ++finished_) {
      const int shard = (first_ + finished_) % items_.num_shards;
      const auto at = static_cast<size_t>(shard);
      int64_t index = items_.claimed[at].load(std::memory_order_relaxed);
      while (index < items_.counts[at]) {
        const int64_t left = items_.counts[at] - index;
        const int64_t count = std::max<int64_t>(left / (kRuns * items_.num_threads), 1);
        if (items_.claimed[at].compare_exchange_weak(index, index + count,
                                                     std::memory_order_relaxed)) {
          return {shard, index, count};
        }
      }
    }
    return {};
  }

  ShardedItems& items_;
  int first_;
  int finished_ = 0;  // shards without items left
  Item next_;
};

}  // namespace switchyard::cpu
