#include "cuda/sm90/grouped_gemm_kernel.cuh"

namespace switchyard::cuda::sm90 {
namespace {
constexpr GroupedGemmVariants kVariants[] = {
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kBlock, kTallTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kBlock, kSquareTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kBlock, kWideTile),
    SWITCHYARD_GEMM_VARIANTS(MmaType::kE4m3, Scaling::kBlock, kLowTile)};
}
GroupedGemmVariantList fp8_block_variants() { return {kVariants, std::size(kVariants)}; }
}  // namespace switchyard::cuda::sm90
