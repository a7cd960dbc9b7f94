// The explicit list of backends.

#include "backend.h"

namespace switchyard {

#ifndef SWITCHYARD_HAS_CUDA
const Backend* cuda_backend() { return nullptr; }
#endif

const Backend& backend(BackendKind kind) {
  switch (kind) {
    case BackendKind::kReference: return reference_backend();
    case BackendKind::kCpu: return cpu_backend();
    case BackendKind::kCuda:
      if (const Backend* cuda = cuda_backend()) return *cuda;
      throw Error(ErrorCode::kUnsupported,
                  "backend is cuda; this build has no CUDA (nvcc 12.8 or newer was not found)");
    case BackendKind::kAuto: break;
  }
  throw Error(ErrorCode::kInternal, "backend(kAuto): auto must be resolved first");
}

}  // namespace switchyard
