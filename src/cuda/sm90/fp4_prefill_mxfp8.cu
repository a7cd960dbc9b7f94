#include "cuda/sm90/fp4_prefill_kernel.cuh"

namespace switchyard::cuda::sm90 {
Fp4PrefillVariantList fp4_prefill_mxfp8() {
  // Layers in this format are rare: no tiles between the usual ones.
  return fp4_prefill_list_of<FragmentOperand<FragmentOrder::kBf16, Format::kMxfp8>, false, 128, 96,
                             64, 32>();
}
}  // namespace switchyard::cuda::sm90
