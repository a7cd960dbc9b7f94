#include "cuda/sm90/fp4_prefill_kernel.cuh"

namespace switchyard::cuda::sm90 {
Fp4PrefillVariantList fp4_prefill_int4_zeros_fp8_g64() {
  return fp4_prefill_list<FragmentOperand<FragmentOrder::kFp8, Format::kInt4, 64, true>>();
}
}  // namespace switchyard::cuda::sm90
