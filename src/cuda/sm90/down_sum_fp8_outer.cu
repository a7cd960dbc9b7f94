#include "cuda/sm90/down_sum.cuh"

namespace switchyard::cuda::sm90 {
void launch_down_sum_fp8_outer(const DownSumParams& params, int num_blocks, Stream stream) {
  launch_down_sum<DownSumTraits<MmaType::kE4m3, Scaling::kOuter>>(params, num_blocks, stream);
}
}  // namespace switchyard::cuda::sm90
