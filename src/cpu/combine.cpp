// Weighted sum of a token's expert outputs: f32, addend, residual, then slots in order.

#include "core/expert_sort.h"
#include "core/portable_math.h"
#include "cpu/rows.h"
#include "cpu/steps.h"

namespace switchyard::cpu {

void combine(const ops::CombineArgs& args, Executor& executor) {
  const int64_t top_k = args.expert_output.extent(1);
  const int32_t* ids = args.topk_ids.as<const int32_t>();
  const int32_t* mask = args.expert_mask.as<const int32_t>();
  const int64_t hidden = args.expert_output.extent(2);
  const float* weights = args.topk_weights.as<const float>();
  const int64_t num_tokens = rows_to_compute(args.num_tokens, args.output.extent(0));
  for_tiles(executor, num_tokens, hidden, top_k, [&](int64_t token, int64_t column, int64_t n) {
    float sum[kTileColumns] = {};
    float other[kTileColumns];
    if (!args.addend.empty()) load_row(args.addend, token * hidden + column, n, sum);
    if (!args.residual.empty()) {
      load_row(args.residual, token * hidden + column, n, other);
      for (int64_t i = 0; i < n; ++i) sum[i] += other[i];
    }
    for (int64_t slot = 0; slot < top_k; ++slot) {
      const int64_t pair = token * top_k + slot;
      if (ids != nullptr && !takes_part(ids[pair], args.num_experts, mask)) continue;
      const float weight = weights == nullptr ? 1.0f : weights[pair];
      load_row(args.expert_output, pair * hidden + column, n, other);
      for (int64_t i = 0; i < n; ++i) sum[i] = mul_add(weight, other[i], sum[i]);
    }
    store_row(args.output, token * hidden + column, n, sum);
  });
}

}  // namespace switchyard::cpu
