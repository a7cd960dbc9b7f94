#include "cuda/sm90/fp4_prefill_kernel.cuh"

namespace switchyard::cuda::sm90 {
Fp4PrefillVariantList fp4_prefill_fp8_block128() {
  return fp4_prefill_list<FragmentOperand<FragmentOrder::kFp8, Format::kMxfp4>, true>();
}
}  // namespace switchyard::cuda::sm90
