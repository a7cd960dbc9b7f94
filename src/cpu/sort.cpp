// MoE sorting as a counting sort over chunks of tokens. Chunks count on their own, one pass turns
// the counts into first rows, and each chunk then scatters its pairs: the result is the stable
// order whatever the number of chunks or threads.

#include <algorithm>
#include <cstring>

#include "core/expert_sort.h"
#include "cpu/rows.h"
#include "cpu/steps.h"

namespace switchyard::cpu {
namespace {

/// Each chunk's counters take 16 KB of stack; 8 are enough to hide the scatter behind memory.
constexpr int64_t kMaxChunks = 8;
/// A chunk is worth a thread from about 10 us of counting and scattering.
constexpr int64_t kMinChunkPairs = 4096;

/// tensor[begin, end) = value, when the tensor is given.
template <class T>
void fill(const TensorView& tensor, int64_t begin, int64_t end, T value) {
  if (!tensor.empty()) std::fill(tensor.as<T>() + begin, tensor.as<T>() + end, value);
}

class Sorter {
 public:
  Sorter(const ops::SortArgs& args, Executor& executor)
      : args_(args),
        executor_(executor),
        num_tokens_(args.topk_ids.extent(0)),
        top_k_(args.topk_ids.extent(1)),
        num_routed_(rows_to_compute(args.num_local_tokens, num_tokens_)),
        num_chunks_(std::clamp<int64_t>(num_routed_ * top_k_ / kMinChunkPairs, 1, kMaxChunks)),
        sentinel_(pack_pair(num_tokens_, top_k_)) {}

  void run() {
    number_local_experts();
    for_chunks([this](int64_t chunk) { count(chunk); });
    const int64_t num_rows = place_experts();
    for_chunks([this](int64_t chunk) { scatter(chunk); });
    fill_unused(num_rows);
    int32_t* valid = args_.num_valid_ids.as<int32_t>();
    valid[0] = static_cast<int32_t>(num_rows);
    if (args_.num_valid_ids.num_elements() > 1) valid[1] = static_cast<int32_t>(num_routed_);
  }

 private:
  template <class Body>
  void for_chunks(Body&& body) const {
    parallel_for(executor_, num_chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk);
    });
  }

  int64_t first_pair(int64_t chunk) const { return num_routed_ * chunk / num_chunks_ * top_k_; }

  void number_local_experts() {
    const int32_t* mask = args_.expert_mask.as<const int32_t>();
    int32_t num_local = 0;
    for (int64_t e = 0; e < args_.num_experts; ++e) {
      const bool is_local = takes_part(static_cast<int32_t>(e), args_.num_experts, mask);
      local_ids_[e] = is_local ? num_local++ : -1;
    }
  }

  /// Local id of a pair's expert, -1 when the pair is skipped.
  int32_t local_expert(int64_t pair) const {
    const int32_t id = args_.topk_ids.as<const int32_t>()[pair];
    return takes_part(id, args_.num_experts) ? local_ids_[id] : -1;
  }

  void count(int64_t chunk) {
    int32_t* counts = rows_[chunk];
    std::fill_n(counts, args_.num_experts, 0);
    int32_t* local_topk_ids = args_.local_topk_ids.as<int32_t>();
    const int64_t end = first_pair(chunk + 1);
    for (int64_t pair = first_pair(chunk); pair < end; ++pair) {
      const int32_t expert = local_expert(pair);
      if (expert >= 0) ++counts[expert];
      if (local_topk_ids != nullptr) local_topk_ids[pair] = expert;
    }
  }

  /// Turns counts into each chunk's first row per expert, names the blocks, pads the last one of an
  /// expert. Returns the rows in blocks.
  int64_t place_experts() {
    int64_t row = 0;
    for (int64_t e = 0; e < args_.num_experts; ++e) {
      const int64_t first_row = row;
      for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
        const int32_t count = rows_[chunk][e];
        rows_[chunk][e] = static_cast<int32_t>(row);
        row += count;
      }
      const int64_t end = first_row + align_up(row - first_row, args_.unit_size);
      fill(args_.sorted_expert_ids, first_row / args_.unit_size, end / args_.unit_size,
           static_cast<int32_t>(e));
      fill_padding(row, end);
      row = end;
    }
    return row;
  }

  void scatter(int64_t chunk) {
    int32_t* next_row = rows_[chunk];
    int32_t* m_indices = args_.m_indices.as<int32_t>();
    int32_t* reverse_sorted = args_.reverse_sorted.as<int32_t>();
    const float* weights = args_.topk_weights.as<const float>();
    int64_t pair = first_pair(chunk);
    const int64_t end = first_pair(chunk + 1);
    for (int64_t token = pair / top_k_; pair < end; ++token) {
      for (int64_t slot = 0; slot < top_k_; ++slot, ++pair) {
        const int32_t expert = local_expert(pair);
        const int32_t row = expert < 0 ? -1 : next_row[expert]++;
        if (reverse_sorted != nullptr) reverse_sorted[pair] = row;
        if (row < 0) continue;
        args_.sorted_ids.as<int32_t>()[row] = pack_pair(token, slot);
        args_.sorted_weights.as<float>()[row] = weights[pair];
        if (m_indices != nullptr) m_indices[row] = static_cast<int32_t>(token);
      }
    }
  }

  /// Rows that hold no pair.
  void fill_padding(int64_t begin, int64_t end) const {
    fill(args_.sorted_ids, begin, end, sentinel_);
    fill(args_.sorted_weights, begin, end, 0.0f);
    fill(args_.m_indices, begin, end, static_cast<int32_t>(num_tokens_));
  }

  /// Everything past the last block, and the pairs of tokens past num_local_tokens.
  void fill_unused(int64_t num_rows) const {
    fill(args_.sorted_ids, num_rows, args_.sorted_ids.num_elements(), sentinel_);
    fill(args_.sorted_weights, num_rows, args_.sorted_weights.num_elements(), 0.0f);
    fill(args_.m_indices, num_rows, args_.m_indices.num_elements(),
         static_cast<int32_t>(num_tokens_));
    fill(args_.sorted_expert_ids, num_rows / args_.unit_size,
         args_.sorted_expert_ids.num_elements(), -1);
    fill(args_.local_topk_ids, num_routed_ * top_k_, num_tokens_ * top_k_, -1);
    fill(args_.reverse_sorted, num_routed_ * top_k_, num_tokens_ * top_k_, -1);
  }

  const ops::SortArgs& args_;
  Executor& executor_;
  const int64_t num_tokens_;
  const int64_t top_k_;
  const int64_t num_routed_;
  const int64_t num_chunks_;
  const int32_t sentinel_;
  int32_t local_ids_[kMaxExperts];
  int32_t rows_[kMaxChunks][kMaxExperts];  // counts, then next rows, per local expert
};

void zero(const TensorView& buffer, Executor& executor) {
  const int64_t bytes = buffer.num_elements() * element_bytes(buffer.type);
  constexpr int64_t kPiece = 16;
  for_row_ranges(executor, ceil_div(bytes, kPiece), 1, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kPiece, bytes);
    std::memset(buffer.as<char>() + begin * kPiece, 0, static_cast<size_t>(last - begin * kPiece));
  });
}

}  // namespace

void sort(const ops::SortArgs& args, Executor& executor) {
  Sorter(args, executor).run();
  if (!args.moe_buf.empty()) zero(args.moe_buf, executor);
}

}  // namespace switchyard::cpu
