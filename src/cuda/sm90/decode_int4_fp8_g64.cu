#include "cuda/sm90/decode_fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

void decode_int4_fp8_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                         Stream stream) {
  launch_decode_fragments<FragmentOperand<FragmentOrder::kFp8, Format::kInt4, 64>>(
      weights, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
