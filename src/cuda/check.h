#pragma once
// CUDA failures as Error, and the device that a call works on.

#include <cuda_runtime_api.h>

#include <string>

#include "switchyard/error.h"

namespace switchyard::cuda {

/// Throws kOutOfMemory or kDevice with the runtime's own words.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* what);

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw_cuda_error(error, what);
}

/// Facts of one device, read once per process.
struct DeviceFacts {
  std::string name;
  int num_sms = 0;
  int capability = 0;  ///< 90 = 9.0
};
/// Throws kDevice when the device cannot be used.
const DeviceFacts& device_facts(int device);
/// Why this device cannot be used, or empty.
std::string why_no_device(int device);

/// Makes `device` current and puts the old one back.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    changed_ = previous_ != device;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceScope() {
    if (changed_) static_cast<void>(cudaSetDevice(previous_));
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace switchyard::cuda
