// The rate of the matrix units: two warpgroups per SM multiply tiles that stay in shared memory, as
// a GEMM's main loop would if its operands cost nothing. Random bits, because power follows data.

#include "cuda/launch.cuh"
#include "cuda/matrix_rate.h"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace switchyard::cuda::sm90 {
namespace {

constexpr int kGroups = 2;
constexpr int kM = 64, kN = 256;
constexpr int kRowBytes = 128;  // of K: four instructions
constexpr int kStages = 4;
constexpr int kBytesA = kM * kRowBytes, kBytesB = kN * kRowBytes;
constexpr int kStageBytes = kGroups * kBytesA + kBytesB;
constexpr int kSharedBytes = kStages * kStageBytes;
constexpr int kAlignment = 1024;
constexpr int kIterations = 512;  // of all stages: about 0.3 ms

__device__ uint32_t hash(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

/// Finite numbers of either sign below 2.
template <MmaType kType>
__device__ uint32_t random_operands(uint32_t i) {
  constexpr uint32_t kKeep = kType == MmaType::kBf16   ? 0x81ff81ffu
                             : kType == MmaType::kE4m3 ? 0xbfbfbfbfu
                                                       : ~0u;
  constexpr uint32_t kSet = kType == MmaType::kBf16 ? 0x3c003c00u : 0u;
  return (hash(i) & kKeep) | kSet;
}

template <MmaType kType>
__global__ void __launch_bounds__(kGroups * 128, 1) matrix_rate_kernel(float* sink) {
  extern __shared__ char unaligned[];
  auto* tiles = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(unaligned) + kAlignment - 1) /
                                        kAlignment * kAlignment);
  for (uint32_t i = threadIdx.x; i < kSharedBytes / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t*>(tiles)[i] = random_operands<kType>(i + blockIdx.x * 0x10001u);
  }
  fence_async_shared();
  __syncthreads();

  using Mma = Wgmma<kType, kN>;
  typename Mma::Accumulator sum = {};
  const uint32_t first = shared_address(tiles);
  const uint32_t group = threadIdx.x / 128;
  for (int i = 0; i < kIterations; ++i) {
#pragma unroll
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      const uint32_t b = first + stage * kStageBytes;
      const uint32_t a = b + kBytesB + group * kBytesA;
      wgmma_fence();
#pragma unroll
      for (uint32_t k = 0; k < kRowBytes; k += 32) {
        Mma::ss(sum, swizzled_128_descriptor(a + k), swizzled_128_descriptor(b + k), true);
      }
      wgmma_commit();
      wgmma_wait<1>();
    }
  }
  wgmma_wait<0>();
  pin(sum);
  for (const auto value : sum) {
    if (value == 1234567) *sink = 1;  // hardly ever: keeps the products
  }
}

template <MmaType kType>
void launch_kernel(float* sink, int num_sms, cudaStream_t stream) {
  launch(matrix_rate_kernel<kType>,
         {.grid = dim3(static_cast<unsigned>(num_sms)),
          .block = kGroups * 128,
          .shared_bytes = kSharedBytes + kAlignment},
         stream, sink);
}

}  // namespace

double launch_matrix_rate(MatrixOperands operands, float* sink, int num_sms, cudaStream_t stream) {
  switch (operands) {
    case MatrixOperands::kBf16: launch_kernel<MmaType::kBf16>(sink, num_sms, stream); break;
    case MatrixOperands::kE4m3: launch_kernel<MmaType::kE4m3>(sink, num_sms, stream); break;
    case MatrixOperands::kS8: launch_kernel<MmaType::kS8>(sink, num_sms, stream); break;
  }
  const double columns = operands == MatrixOperands::kBf16 ? kRowBytes / 2 : kRowBytes;
  return 2.0 * kGroups * kM * kN * columns * kStages * kIterations * num_sms;
}

}  // namespace switchyard::cuda::sm90
