#include "cuda/reachable.h"

#include <fmt/format.h>

#include "cuda/check.h"

namespace switchyard::cuda {

void require_reachable(const char* name, const TensorView& tensor) {
  if (tensor.data == nullptr) return;
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, tensor.data), "cudaPointerGetAttributes");
  if (attributes.type != cudaMemoryTypeUnregistered) return;
  int device = 0;
  int reaches_host = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&reaches_host, cudaDevAttrPageableMemoryAccess, device),
        "cudaDeviceGetAttribute");
  if (reaches_host != 0) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} is host memory; the cuda backend needs memory of its device", name));
}

}  // namespace switchyard::cuda
