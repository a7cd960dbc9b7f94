#pragma once
// Device memory that frees itself.

#include <cstdint>
#include <utility>

#include "cuda/check.h"

namespace switchyard::cuda {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// On the current device. 0 bytes allocate nothing.
  explicit DeviceBuffer(int64_t bytes) : bytes_(bytes) {
    if (bytes > 0) check(cudaMalloc(&data_, static_cast<size_t>(bytes)), "cudaMalloc");
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() { static_cast<void>(cudaFree(data_)); }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void copy_from_host(int64_t offset, const void* source, int64_t bytes) const {
    check(
        cudaMemcpy(as<char>() + offset, source, static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
        "cudaMemcpy");
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace switchyard::cuda
