#include "cuda/sm90/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "cuda/check.h"

namespace switchyard::cuda::sm90 {
namespace {

/// libcuda is opened at run time, so the encoder is looked up there.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000,
                                           cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess) {
      throw Error(ErrorCode::kDevice, "the driver has no cuTensorMapEncodeTiled; it needs 12.0");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(address);
  }();
  return function;
}

}  // namespace

CUtensorMap tensor_map(const TensorMap3d& tensor) {
  const TensorMap2d& slab = tensor.slab;
  const bool flat = tensor.slabs == 0;
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(slab.cols),
                                 static_cast<cuuint64_t>(slab.rows),
                                 static_cast<cuuint64_t>(tensor.slabs)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(slab.row_bytes),
                                 static_cast<cuuint64_t>(tensor.slab_bytes)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(slab.box_cols),
                             static_cast<cuuint32_t>(slab.box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = encoder()(
      &map,
      slab.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
      flat ? 2 : 3, const_cast<void*>(slab.data), extents, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_NONE,  // 256 bytes: 4.2 instead of 4.57 TB/s of weights
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(ErrorCode::kInternal,
                fmt::format("cuTensorMapEncodeTiled returned {} for {} x {} x {}, box {} x {}",
                            static_cast<int>(result), tensor.slabs, slab.rows, slab.cols,
                            slab.box_rows, slab.box_cols));
  }
  return map;
}

CUtensorMap tensor_map(const TensorMap2d& tensor) {
  return tensor_map(TensorMap3d{.slab = tensor});
}

}  // namespace switchyard::cuda::sm90
