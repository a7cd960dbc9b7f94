#include <cuda_runtime.h>

#include "gpu/limits.h"

namespace switchyard::bench {
namespace {

constexpr int kThreads = 512;
constexpr int kInFlight = 8;

unsigned num_blocks(int64_t bytes, bool persistent) {
  int device = 0, sms = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t vectors = bytes / 16;
  if (!persistent) return static_cast<unsigned>(vectors / (kThreads * kInFlight) + 1);
  const int64_t useful = vectors / kThreads + 1;
  const int64_t most = 4 * sms;
  return static_cast<unsigned>(useful < most ? useful : most);
}

template <bool kRead, bool kWrite>
__global__ void __launch_bounds__(kThreads)
    move_kernel(uint4* __restrict__ to, const uint4* __restrict__ from, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t seen = 0;
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
  if (!kWrite && seen == 0xfffffffeu) to[0] = uint4{};  // never on our data: keeps the loads
}

__global__ void empty_kernel() {}

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

void launch_empty(cudaStream_t stream) { empty_kernel<<<1, 32, 0, stream>>>(); }
void launch_copy(void* to, const void* from, int64_t bytes, bool persistent, cudaStream_t stream) {
  move_kernel<true, true><<<num_blocks(bytes, persistent), kThreads, 0, stream>>>(
      static_cast<uint4*>(to), static_cast<const uint4*>(from), bytes / 16);
}
void launch_read(const void* from, int64_t bytes, bool persistent, cudaStream_t stream) {
  move_kernel<true, false><<<num_blocks(bytes, persistent), kThreads, 0, stream>>>(
      static_cast<uint4*>(const_cast<void*>(from)), static_cast<const uint4*>(from), bytes / 16);
}
void launch_write(void* to, int64_t bytes, bool persistent, cudaStream_t stream) {
  move_kernel<false, true><<<num_blocks(bytes, persistent), kThreads, 0, stream>>>(
      static_cast<uint4*>(to), nullptr, bytes / 16);
}
void fill_random(void* to, int64_t bytes, bool bf16, uint64_t seed, cudaStream_t stream) {
  fill_kernel<<<1024, 256, 0, stream>>>(static_cast<uint32_t*>(to), bytes / 4, bf16, seed);
}

}  // namespace switchyard::bench
