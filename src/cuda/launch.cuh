#pragma once
// Kernel launches that throw, and how a kernel overlaps the one before it.

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "cuda/check.h"
#include "cuda/token_count.h"

namespace switchyard::cuda {

struct LaunchShape {
  dim3 grid{1};
  dim3 block{1};
  int64_t shared_bytes = 0;
  /// The kernel may start before the one launched just before it in the stream has ended; it calls
  /// wait_for_previous_kernel() before it reads that one's output. Needs sm_90.
  bool overlap_previous = false;
  unsigned cluster = 1;  ///< blocks that share a cluster; sm_90
};

/// Whether kernels of the current device may overlap.
inline bool can_overlap() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device_facts(device).capability >= 90;
}

/// More than the 48 KB that every kernel may take.
template <class... Params>
void allow_shared_bytes(void (*kernel)(Params...), int64_t bytes) {
  constexpr int64_t kDefaultLimit = 48 * 1024;
  if (bytes <= kDefaultLimit) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            Args&&... args) {
  allow_shared_bytes(kernel, shape.shared_bytes);
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  if (shape.overlap_previous) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = shape.cluster;
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), "kernel launch");
}

__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace switchyard::cuda
