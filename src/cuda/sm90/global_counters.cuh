#pragma once
// Counters in global memory, by which CTAs tell each other what has been written.

#include <cstdint>

namespace switchyard::cuda::sm90 {

/// What this thread has seen or written lies before the addition.
__device__ __forceinline__ void release_add(uint32_t* to, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t acquire_load(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

}  // namespace switchyard::cuda::sm90
