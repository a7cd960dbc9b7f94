// Weighted sum of a token's expert outputs, in double.

#include <algorithm>

#include "core/expert_sort.h"
#include "core/number_formats.h"
#include "reference/steps.h"

namespace switchyard::reference {
namespace {

double element(const TensorView& tensor, int64_t index) {
  return static_cast<double>(load_as_f32(tensor.data, tensor.type, index));
}

}  // namespace

void combine(const ops::CombineArgs& args) {
  const int64_t top_k = args.expert_output.extent(1);
  const int32_t* ids = args.topk_ids.as<const int32_t>();
  const int32_t* mask = args.expert_mask.as<const int32_t>();
  const int64_t hidden = args.expert_output.extent(2);
  int64_t num_tokens = args.output.extent(0);
  if (!args.num_tokens.empty()) {
    num_tokens = std::min<int64_t>(num_tokens, *args.num_tokens.as<const int32_t>());
  }
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t i = 0; i < hidden; ++i) {
      double sum = args.addend.empty() ? 0.0 : element(args.addend, token * hidden + i);
      if (!args.residual.empty()) sum += element(args.residual, token * hidden + i);
      for (int64_t slot = 0; slot < top_k; ++slot) {
        const int64_t pair = token * top_k + slot;
        if (ids != nullptr && !takes_part(ids[pair], args.num_experts, mask)) continue;
        const double weight = args.topk_weights.empty() ? 1.0 : element(args.topk_weights, pair);
        sum += weight * element(args.expert_output, pair * hidden + i);
      }
      store_f32(args.output.data, args.output.type, token * hidden + i, static_cast<float>(sum));
    }
  }
}

}  // namespace switchyard::reference
