#include "cuda/sm90/grouped_gemm_kernel.cuh"

namespace switchyard::cuda::sm90 {
namespace {
constexpr GroupedGemmVariants kVariants[] = {
    SWITCHYARD_GEMM_VARIANTS(MmaType::kS8, Scaling::kOuter, kTallTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kS8, Scaling::kOuter, kSquareTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kS8, Scaling::kOuter, kLowTile)};
}
GroupedGemmVariantList int8_variants() { return {kVariants, std::size(kVariants)}; }
}  // namespace switchyard::cuda::sm90
