#pragma once
// One table of sorting problems for every backend: the field's own test shapes, production models,
// masks, counts on the device, lopsided, invalid and repeated ids.

#include <string>
#include <vector>

#include "support/buffer.h"
#include "switchyard/ops.h"

namespace switchyard::test {

enum class SortIds { kDistinct, kWithInvalid, kOneExpert, kAllInvalid, kRepeated };

struct SortCase {
  int64_t num_tokens, num_experts, top_k;
  int64_t unit_size = 32;
  double mask_ratio = -1;  // share of local experts; < 0: no mask
  int64_t num_local = -1;  // num_local_tokens; < 0: not given
  SortIds ids = SortIds::kDistinct;
  bool optional_outputs = true;
  int64_t extra_rows = 0;  // outputs longer than needed
};

/// For SCOPED_TRACE.
std::string describe(const SortCase& c);

std::vector<SortCase> one_shot_sort_cases();
std::vector<SortCase> multi_phase_sort_cases();
std::vector<SortCase> masked_sort_cases();
std::vector<SortCase> model_sort_cases();
std::vector<SortCase> counted_sort_cases();  // num_local_tokens
std::vector<SortCase> unusual_sort_cases();  // lopsided, invalid and repeated ids
std::vector<SortCase> output_sort_cases();   // optional outputs missing, others longer

/// Inputs and poisoned outputs of one sort.
struct SortProblem {
  explicit SortProblem(const SortCase& shape);

  bool is_local(int64_t e) const { return c.mask_ratio < 0 || mask.as<int32_t>()[e] != 0; }
  int64_t num_routed() const;

  SortCase c;
  Buffer ids, weights, mask, num_local;
  Buffer sorted_ids, sorted_weights, sorted_expert_ids, num_valid_ids, moe_buf, local_topk_ids,
      m_indices, reverse_sorted;
  ops::SortArgs args;
};

}  // namespace switchyard::test
