#include "cuda/sm90/fp4_prefill_kernel.cuh"

namespace switchyard::cuda::sm90 {
Fp4PrefillVariantList fp4_prefill_nvfp4_fp8() {
  return fp4_prefill_list<FragmentOperand<FragmentOrder::kFp8, Format::kNvfp4>>();
}
}  // namespace switchyard::cuda::sm90
