#pragma once
// Memory where a backend computes, for callers without an allocator of their own for it.

#include <cstdint>
#include <memory>

#include "switchyard/error.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// Owned memory on the device of a backend; host memory for cpu and reference. Aligned to
/// kWorkspaceAlignment, never null.
class DeviceMemory {
 public:
  /// A copy of `bytes` bytes at `host`; uninitialised when `host` is null. Throws
  /// Error{kInvalidArgument} for kAuto, kUnsupported or kDevice when the backend cannot run here.
  DeviceMemory(BackendKind backend, int device, int64_t bytes, const void* host = nullptr);

  void* data() const noexcept { return data_.get(); }
  int64_t bytes() const noexcept { return bytes_; }
  Workspace workspace() const noexcept { return {.data = data(), .bytes = bytes_}; }
  /// Waits for all work queued on the device, then copies everything to `host`.
  void copy_to(void* host) const;

 private:
  BackendKind backend_;
  int device_;
  int64_t bytes_;
  std::shared_ptr<void> data_;
};

/// Returns when all work queued on the device is done. Nothing to wait for on cpu and reference.
void synchronize(BackendKind backend, int device = 0);

}  // namespace switchyard
