#include "cuda/sm90/decode_fragment_operand.cuh"

namespace switchyard::cuda::sm90 {

void decode_nvfp4_fp8(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                      Stream stream) {
  launch_decode_fragments<FragmentOperand<FragmentOrder::kFp8, Format::kNvfp4>>(weights, args,
                                                                                num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
