#include "cuda/sm90/grouped_gemm_kernel.cuh"

namespace switchyard::cuda::sm90 {
namespace {
constexpr GroupedGemmVariants kVariants[] = {
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kOuter, kTallTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kOuter, kSquareTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kOuter, kWideTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kOuter, kLowTile)};
}
GroupedGemmVariantList fp8_outer_variants() { return {kVariants, std::size(kVariants)}; }
}  // namespace switchyard::cuda::sm90
