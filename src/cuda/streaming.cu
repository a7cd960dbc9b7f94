#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/matrix_rate.h"
#include "cuda/streaming.h"

namespace switchyard::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kInFlight = 8;

LaunchShape shape_for(int64_t bytes, StreamStyle style) {
  const int64_t vectors = bytes / 16;
  int64_t blocks = vectors / (kThreads * kInFlight) + 1;
  if (style != StreamStyle::kPieces) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    blocks = std::min<int64_t>(vectors / kThreads + 1, 4 * device_facts(device).num_sms);
  }
  return {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = kThreads,
          .overlap_previous = style == StreamStyle::kOverlap && can_overlap()};
}

template <bool kRead, bool kWrite>
__global__ void __launch_bounds__(kThreads)
    move_kernel(uint4* __restrict__ to, const uint4* __restrict__ from, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t seen = 0;
  let_next_kernel_start();
  if (kWrite) wait_for_previous_kernel();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += kInFlight * step) {
    uint4 v[kInFlight] = {};
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (kRead && i + j * step < count) v[j] = from[i + j * step];
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (kWrite) {
        if (i + j * step < count) to[i + j * step] = v[j];
      } else {
        seen |= v[j].x & v[j].y & v[j].z & v[j].w;
      }
    }
  }
  if (kWrite) return;
  wait_for_previous_kernel();                // what follows this kernel may rely on all before it
  if (seen == 0xfffffffeu) to[0] = uint4{};  // never on our data: keeps the loads
}

__global__ void empty_kernel() {}

constexpr int kChains = 8, kSteps = 4096;
__global__ void __launch_bounds__(kThreads) f32_rate_kernel(float* sink) {
  float sum[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum[i] = static_cast<float>(threadIdx.x + i);
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (float& s : sum) s = fmaf(s, 0.999f, 0.5f);
  }
  for (const float s : sum) {
    if (s == 0.123f) *sink = s;  // never: keeps the sums
  }
}

__device__ uint32_t hash(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x >> 32);
}
/// A float in +-4 with varied exponents.
__device__ float random_float(uint64_t i) {
  const uint32_t a = hash(2 * i);
  const uint32_t b = hash(2 * i + 1);
  const float sum = static_cast<float>(a >> 16) + static_cast<float>(a & 0xffffu) +
                    static_cast<float>(b >> 16) + static_cast<float>(b & 0xffffu);
  return (sum - 131070.0f) * (1.0f / 32768.0f);
}
__global__ void fill_kernel(uint32_t* to, int64_t words, bool bf16, uint64_t seed) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint64_t at = seed * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(2 * i);
    const uint32_t low = __float_as_uint(random_float(at));
    to[i] = bf16 ? low >> 16 | (__float_as_uint(random_float(at + 1)) & 0xffff0000u) : low;
  }
}

}  // namespace

double launch_f32_rate(float* sink, int num_sms, cudaStream_t stream) {
  constexpr unsigned kBlocksPerSm = 4;
  const unsigned blocks = kBlocksPerSm * static_cast<unsigned>(num_sms);
  launch(f32_rate_kernel, {.grid = blocks, .block = kThreads}, stream, sink);
  return 2.0 * kChains * kSteps * kThreads * blocks;
}

void launch_empty(cudaStream_t stream) { empty_kernel<<<1, 32, 0, stream>>>(); }
void launch_copy(void* to, const void* from, int64_t bytes, StreamStyle style,
                 cudaStream_t stream) {
  launch(move_kernel<true, true>, shape_for(bytes, style), stream, static_cast<uint4*>(to),
         static_cast<const uint4*>(from), bytes / 16);
}
void launch_read(const void* from, int64_t bytes, StreamStyle style, cudaStream_t stream) {
  launch(move_kernel<true, false>, shape_for(bytes, style), stream,
         static_cast<uint4*>(const_cast<void*>(from)), static_cast<const uint4*>(from), bytes / 16);
}
void launch_write(void* to, int64_t bytes, StreamStyle style, cudaStream_t stream) {
  launch(move_kernel<false, true>, shape_for(bytes, style), stream, static_cast<uint4*>(to),
         static_cast<const uint4*>(nullptr), bytes / 16);
}
void fill_random(void* to, int64_t bytes, bool bf16, uint64_t seed, cudaStream_t stream) {
  fill_kernel<<<1024, 256, 0, stream>>>(static_cast<uint32_t*>(to), bytes / 4, bf16, seed);
}

}  // namespace switchyard::cuda
