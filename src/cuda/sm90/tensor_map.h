#pragma once
// Tensor maps for the copy engine.

#include <cuda.h>

#include <cstdint>

namespace switchyard::cuda::sm90 {

/// Row-major [rows][cols] of elements of 1 or 2 bytes; a box of box_rows x box_cols lands in shared
/// memory with the 128-byte swizzle (box_cols * element_bytes <= 128) and zeros outside.
/// row_bytes: a multiple of 16.
struct TensorMap2d {
  const void* data = nullptr;
  int64_t rows = 0, cols = 0, row_bytes = 0;
  int element_bytes = 1;
  int box_rows = 0, box_cols = 0;
};
CUtensorMap tensor_map(const TensorMap2d& tensor);

/// [slabs][rows][cols], a box lies within one slab: rows past its end are zeros.
struct TensorMap3d {
  TensorMap2d slab{};
  int64_t slabs = 0, slab_bytes = 0;
};
CUtensorMap tensor_map(const TensorMap3d& tensor);

}  // namespace switchyard::cuda::sm90
