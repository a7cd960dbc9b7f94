#include "cuda/sm90/decode_fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

void decode_int4_int8_g32(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                          Stream stream) {
  launch_decode_fragments<FragmentOperand<FragmentOrder::kInt8, Format::kInt4, 32>>(
      weights, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
