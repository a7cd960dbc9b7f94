#include "cuda/sm90/down_sum.cuh"

namespace switchyard::cuda::sm90 {
void launch_down_sum_mxfp4_fp8(const DownSumParams& params, int num_blocks, Stream stream) {
  using Operand = FragmentOperand<FragmentOrder::kFp8, Format::kMxfp4>;
  launch_down_sum<DownSumTraits<MmaType::kE4m3, Scaling::kOuter, Operand>>(params, num_blocks,
                                                                           stream);
}
}  // namespace switchyard::cuda::sm90
