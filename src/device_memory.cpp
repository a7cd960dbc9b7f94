// Public memory: aligned host memory, or the backend's own.

#include "switchyard/device_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backend.h"

namespace switchyard {
namespace {

std::shared_ptr<void> allocate_host(int64_t bytes, const void* host) {
  constexpr auto kAlignment = static_cast<size_t>(kWorkspaceAlignment);
  const size_t padded =
      (static_cast<size_t>(std::max<int64_t>(bytes, 1)) + kAlignment - 1) / kAlignment * kAlignment;
  std::shared_ptr<void> memory(std::aligned_alloc(kAlignment, padded), std::free);
  if (memory == nullptr) {
    throw Error(ErrorCode::kOutOfMemory, fmt::format("bytes is {}; no memory is left", bytes));
  }
  if (host != nullptr) std::memcpy(memory.get(), host, static_cast<size_t>(bytes));
  return memory;
}

bool on_host(BackendKind kind) {
  if (kind == BackendKind::kAuto) {
    throw Error(ErrorCode::kInvalidArgument, "backend is auto; memory needs a concrete backend");
  }
  return kind != BackendKind::kCuda;
}

LayerOptions on_device(int device) {
  LayerOptions options;
  options.device = device;
  return options;
}

}  // namespace

DeviceMemory::DeviceMemory(BackendKind backend_kind, int device, int64_t bytes, const void* host)
    : backend_(backend_kind), device_(device), bytes_(bytes) {
  if (bytes < 0) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("bytes is {}; it must be >= 0", bytes));
  }
  data_ = on_host(backend_)
              ? allocate_host(bytes, host)
              : backend(backend_).upload(bytes > 0 ? host : nullptr, std::max<int64_t>(bytes, 1),
                                         on_device(device));
}

void DeviceMemory::copy_to(void* host) const {
  if (!on_host(backend_)) {
    backend(backend_).download(host, data(), bytes_, on_device(device_));
  } else if (bytes_ > 0) {
    std::memcpy(host, data(), static_cast<size_t>(bytes_));
  }
}

void synchronize(BackendKind backend_kind, int device) {
  if (on_host(backend_kind)) return;
  backend(backend_kind).download(nullptr, nullptr, 0, on_device(device));
}

}  // namespace switchyard
