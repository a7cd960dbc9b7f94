#include "cuda/sm90/grouped_gemm_kernel.cuh"

namespace switchyard::cuda::sm90 {
namespace {
constexpr GroupedGemmVariants kVariants[] = {
    SWITCHYARD_GEMM_VARIANTS(MmaType::kBf16, Scaling::kNone, kWideTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kBf16, Scaling::kNone, kSquareTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kBf16, Scaling::kNone, kLowTile)};
}
GroupedGemmVariantList bf16_variants() { return {kVariants, std::size(kVariants)}; }
}  // namespace switchyard::cuda::sm90
