#include "cuda/sm90/down_sum.h"

#include "cuda/sm90/down_sum_kernels.h"

namespace switchyard::cuda::sm90 {
namespace {

DownSumLauncher launcher_of(Format weights, Scaling scaling) {
  if (weights == Format::kInt8) return launch_down_sum_int8;
  return scaling == Scaling::kBlock ? launch_down_sum_fp8_block : launch_down_sum_fp8_outer;
}

}  // namespace

void down_sum(const DownSumJob& job, const DownSumPlan& plan, int num_sms, Stream stream) {
  if (job.down.sorted.num_blocks == 0) return;
  const CUtensorMap map =
      weight_map(job.down.weights, job.down.num_experts, {.block_n = kDownSumColumns});
  const DownSumParams params{.gemm = grouped_gemm_params(job.down, map),
                             .sum = job.sum,
                             .pair_rows = job.pair_rows,
                             .ring = static_cast<uint8_t*>(job.ring),
                             .slot_bytes = plan.slot_bytes,
                             .num_slots = plan.num_slots,
                             .num_buffers = plan.size.buffers,
                             .computed = job.counters,
                             .summed = job.counters + plan.num_slabs,
                             .shared = down_sum_shared(plan.size)};
  launcher_of(job.down.weights.rows.format, scaling_of(job.down.input, job.down.weights))(
      params, num_sms, stream);
}

}  // namespace switchyard::cuda::sm90
