#include "cuda/sm90/down_sum.h"

#include "cuda/sm90/down_sum_kernels.h"

namespace switchyard::cuda::sm90 {
namespace {

DownSumLauncher launcher_of(Format weights, Scaling scaling) {
  if (weights == Format::kMxfp4) return launch_down_sum_mxfp4_fp8;
  if (weights == Format::kInt8) return launch_down_sum_int8;
  return scaling == Scaling::kBlock ? launch_down_sum_fp8_block : launch_down_sum_fp8_outer;
}

}  // namespace

void down_sum(const DownSumJob& job, const DownSumPlan& plan, int num_sms, Stream stream) {
  if (job.down.sorted.num_blocks == 0) return;
  const WeightRows& w = job.down.weights;
  const bool converts = w.fragments.order != FragmentOrder::kRowMajor;
  const CUtensorMap map =
      converts ? CUtensorMap{} : weight_map(w, job.down.num_experts, {.block_n = kDownSumColumns});
  GroupedGemmParams gemm = grouped_gemm_params(job.down, map);
  if (converts) gemm.channel_scales = w.row_scales;
  const DownSumParams params{.gemm = gemm,
                             .fragments = {.blocks = static_cast<const uint8_t*>(w.rows.values),
                                           .expert_bytes = w.expert_bytes,
                                           .row_block_bytes = w.fragments.row_block_bytes(),
                                           .col_blocks = w.fragments.col_blocks,
                                           .deep = job.down.deep_scales},
                             .sum = job.sum,
                             .pair_rows = job.pair_rows,
                             .ring = static_cast<uint8_t*>(job.ring),
                             .slot_bytes = plan.slot_bytes,
                             .num_slots = plan.num_slots,
                             .num_buffers = plan.size.buffers,
                             .most_waves = plan.size.waves,
                             .computed = job.counters,
                             .summed = job.counters + plan.num_slabs,
                             .shared = down_sum_shared(plan.size)};
  launcher_of(job.down.weights.rows.format, scaling_of(job.down.input, job.down.weights))(
      params, num_sms, stream);
}

}  // namespace switchyard::cuda::sm90
