#include "cuda/sm90/fp4_prefill_kernel.cuh"

namespace switchyard::cuda::sm90 {
Fp4PrefillVariantList fp4_prefill_mxfp8() {
  return fp4_prefill_list<FragmentOperand<FragmentOrder::kBf16, Format::kMxfp8>>();
}
}  // namespace switchyard::cuda::sm90
