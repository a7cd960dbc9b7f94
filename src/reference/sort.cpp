// MoE sorting as it is defined: list the pairs of each expert, then write the lists in blocks.

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/expert_sort.h"
#include "reference/steps.h"

namespace switchyard::reference {
namespace {

struct Pair {
  int64_t token;
  int64_t slot;
};

/// local[e] = number of local experts before e.
std::vector<int32_t> local_ids(const ops::SortArgs& args) {
  std::vector<int32_t> local(static_cast<size_t>(args.num_experts));
  int32_t num_local = 0;
  for (size_t e = 0; e < local.size(); ++e) {
    local[e] = num_local;
    const auto id = static_cast<int32_t>(e);
    if (takes_part(id, args.num_experts, args.expert_mask.as<const int32_t>())) ++num_local;
  }
  return local;
}

template <class T>
void fill(const TensorView& tensor, T value) {
  if (!tensor.empty()) std::fill_n(tensor.as<T>(), tensor.num_elements(), value);
}

}  // namespace

void sort(const ops::SortArgs& args) {
  const int64_t num_tokens = args.topk_ids.extent(0);
  const int64_t top_k = args.topk_ids.extent(1);
  const std::vector<int32_t> local = local_ids(args);
  int64_t num_routed = num_tokens;
  if (!args.num_local_tokens.empty()) {
    num_routed = std::clamp<int64_t>(*args.num_local_tokens.as<const int32_t>(), 0, num_tokens);
  }

  fill(args.sorted_ids, pack_pair(num_tokens, top_k));
  fill(args.sorted_weights, 0.0f);
  fill(args.sorted_expert_ids, -1);
  fill(args.m_indices, static_cast<int32_t>(num_tokens));
  fill(args.reverse_sorted, -1);
  fill(args.local_topk_ids, -1);
  if (!args.moe_buf.empty()) {
    const int64_t bytes = args.moe_buf.num_elements() * element_bytes(args.moe_buf.type);
    std::memset(args.moe_buf.data, 0, static_cast<size_t>(bytes));
  }

  std::vector<std::vector<Pair>> pairs_of(local.size());
  for (int64_t token = 0; token < num_routed; ++token) {
    for (int64_t slot = 0; slot < top_k; ++slot) {
      const int64_t pair = token * top_k + slot;
      const int32_t id = args.topk_ids.as<const int32_t>()[pair];
      if (!takes_part(id, args.num_experts, args.expert_mask.as<const int32_t>())) continue;
      pairs_of[static_cast<size_t>(id)].push_back({token, slot});
      if (!args.local_topk_ids.empty()) {
        args.local_topk_ids.as<int32_t>()[pair] = local[static_cast<size_t>(id)];
      }
    }
  }

  int64_t first_row = 0;
  for (size_t e = 0; e < pairs_of.size(); ++e) {
    for (size_t i = 0; i < pairs_of[e].size(); ++i) {
      const auto [token, slot] = pairs_of[e][i];
      const int64_t pair = token * top_k + slot;
      const int64_t row = first_row + static_cast<int64_t>(i);
      args.sorted_ids.as<int32_t>()[row] = pack_pair(token, slot);
      args.sorted_weights.as<float>()[row] = args.topk_weights.as<const float>()[pair];
      args.sorted_expert_ids.as<int32_t>()[row / args.unit_size] = local[e];
      if (!args.m_indices.empty()) {
        args.m_indices.as<int32_t>()[row] = static_cast<int32_t>(token);
      }
      if (!args.reverse_sorted.empty()) {
        args.reverse_sorted.as<int32_t>()[pair] = static_cast<int32_t>(row);
      }
    }
    first_row += align_up(static_cast<int64_t>(pairs_of[e].size()), args.unit_size);
  }
  int32_t* valid = args.num_valid_ids.as<int32_t>();
  valid[0] = static_cast<int32_t>(first_row);
  if (args.num_valid_ids.num_elements() > 1) valid[1] = static_cast<int32_t>(num_routed);
}

}  // namespace switchyard::reference
