#pragma once
// Plain kernels that move bytes: what the steps are measured against.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace switchyard::cuda {

/// kWalk: a few blocks per SM walk the data, else each block has its piece. kOverlap: the same, and
/// the kernel starts while the one before it ends.
enum class StreamStyle { kPieces, kWalk, kOverlap };

void launch_empty(cudaStream_t stream);
/// to = from.
void launch_copy(void* to, const void* from, int64_t bytes, StreamStyle style, cudaStream_t stream);
/// Reads all, writes next to nothing.
void launch_read(const void* from, int64_t bytes, StreamStyle style, cudaStream_t stream);
void launch_write(void* to, int64_t bytes, StreamStyle style, cudaStream_t stream);
/// Random normal-like bf16 or f32 bits, finite.
void fill_random(void* to, int64_t bytes, bool bf16, uint64_t seed, cudaStream_t stream);

}  // namespace switchyard::cuda
