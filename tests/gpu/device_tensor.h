#pragma once
// A host tensor's copy on the GPU with canaries around it, and the way back.

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "backend.h"
#include "cuda/device_buffer.h"
#include "support/buffer.h"

namespace switchyard::test {

class DeviceTensor {
 public:
  DeviceTensor() = default;
  /// Copies a contiguous host tensor; an empty view stays empty.
  explicit DeviceTensor(const TensorView& host) : view_(host) {
    if (host.data == nullptr) return;
    bytes_ = host.num_elements() * element_bytes(host.type);
    memory_ = cuda::DeviceBuffer(bytes_ + 2 * kGuard);
    cuda::check(cudaMemset(memory_.data(), kCanary, static_cast<size_t>(memory_.bytes())),
                "cudaMemset");
    view_.data = memory_.as<char>() + kGuard;
    upload(host);
  }

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }  // NOLINT(google-explicit-constructor)

  void upload(const TensorView& host) const {
    if (bytes_ > 0) memory_.copy_from_host(kGuard, host.data, bytes_);
  }
  /// Waits for the device. Fails the test when something was written beside the tensor.
  Buffer fetch() const {
    std::vector<uint8_t> all(static_cast<size_t>(memory_.bytes()));
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    cuda::check(cudaMemcpy(all.data(), memory_.data(), all.size(), cudaMemcpyDeviceToHost),
                "cudaMemcpy");
    for (size_t i = 0; i < kGuard; ++i) {
      if (all[i] != kCanary || all[all.size() - 1 - i] != kCanary) {
        ADD_FAILURE() << "bytes beside a tensor on the device were overwritten";
        break;
      }
    }
    Buffer host(view_.type, {view_.shape.begin(), view_.shape.begin() + view_.rank});
    std::memcpy(host.view().data, all.data() + kGuard, static_cast<size_t>(bytes_));
    return host;
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr uint8_t kCanary = 0xa5;
  cuda::DeviceBuffer memory_;
  TensorView view_{};
  int64_t bytes_ = 0;
};

/// Scratch on the device, full of garbage.
inline cuda::DeviceBuffer device_workspace(int64_t bytes) {
  cuda::DeviceBuffer memory(bytes > 0 ? bytes : 1);
  cuda::check(cudaMemset(memory.data(), 0xff, static_cast<size_t>(memory.bytes())), "cudaMemset");
  return memory;
}
inline Workspace workspace_of(const cuda::DeviceBuffer& memory) {
  return {memory.data(), memory.bytes()};
}

inline const Backend& gpu() { return *cuda_backend(); }
inline ops::Execution on_gpu(const cuda::DeviceBuffer* workspace = nullptr,
                             cudaStream_t stream = nullptr) {
  return {.backend = BackendKind::kCuda,
          .stream = {stream},
          .workspace = workspace == nullptr ? Workspace{} : workspace_of(*workspace)};
}

}  // namespace switchyard::test
