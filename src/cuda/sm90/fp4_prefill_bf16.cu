#include "cuda/sm90/fp4_prefill_kernel.cuh"

namespace switchyard::cuda::sm90 {
namespace {
constexpr Fp4PrefillVariants kVariants[] = {fp4_prefill_variants<FragmentOrder::kBf16, 128>(),
                                            fp4_prefill_variants<FragmentOrder::kBf16, 96>(),
                                            fp4_prefill_variants<FragmentOrder::kBf16, 64>(),
                                            fp4_prefill_variants<FragmentOrder::kBf16, 32>()};
}
Fp4PrefillVariantList fp4_prefill_bf16() { return {kVariants, std::size(kVariants)}; }
}  // namespace switchyard::cuda::sm90
