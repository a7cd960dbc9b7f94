#include "cuda/check.h"

#include <fmt/format.h>

#include <array>
#include <mutex>

namespace switchyard::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kMinCapability = 80;  // bf16 conversions and cp.async; older GPUs have neither

struct CachedDevice {
  std::once_flag once;
  DeviceFacts facts;
  std::string problem;
};

std::string why_no_driver(cudaError_t error) {
  return fmt::format("no usable NVIDIA driver or GPU: {}", cudaGetErrorString(error));
}

void query(int device, CachedDevice& cached) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    cached.problem = why_no_driver(error);
    return;
  }
  if (device >= count) {
    cached.problem = fmt::format("device is {}; this machine has {} GPUs", device, count);
    return;
  }
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device);
      error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    cached.problem = fmt::format("device {}: {}", device, cudaGetErrorString(error));
    return;
  }
  cached.facts = {.name = properties.name,
                  .num_sms = properties.multiProcessorCount,
                  .capability = properties.major * 10 + properties.minor};
  if (cached.facts.capability < kMinCapability) {
    cached.problem = fmt::format("device {} is a {} of compute capability {}.{}; 8.0 is the oldest",
                                 device, properties.name, properties.major, properties.minor);
  }
}

const CachedDevice& cached_device(int device) {
  static std::array<CachedDevice, kMaxDevices> cache;
  CachedDevice& cached = cache[static_cast<size_t>(device)];
  std::call_once(cached.once, query, device, std::ref(cached));
  return cached;
}

}  // namespace

void throw_cuda_error(cudaError_t error, const char* what) {
  static_cast<void>(cudaGetLastError());  // a failed call must not fail the next one too
  const bool memory = error == cudaErrorMemoryAllocation;
  throw Error(memory ? ErrorCode::kOutOfMemory : ErrorCode::kDevice,
              fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error)));
}

std::string why_no_device(int device) {
  if (device < 0 || device >= kMaxDevices) {
    return fmt::format("device is {}; 0 to {} are possible", device, kMaxDevices - 1);
  }
  return cached_device(device).problem;
}

const DeviceFacts& device_facts(int device) {
  if (const std::string problem = why_no_device(device); !problem.empty()) {
    throw Error(ErrorCode::kDevice, "cuda: " + problem);
  }
  return cached_device(device).facts;
}

}  // namespace switchyard::cuda
