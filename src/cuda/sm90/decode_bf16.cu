#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/decode_shared_operand.cuh"

namespace switchyard::cuda::sm90 {

void decode_bf16(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream) {
  launch_decode<SharedOperand<MmaType::kBf16, false>>({map}, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
