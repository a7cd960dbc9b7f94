#include "cuda/calibrate.h"

#include <algorithm>

#include "cuda/graph_timing.h"
#include "cuda/matrix_rate.h"

namespace switchyard::cuda {
namespace {

constexpr double kMega = 1e6;

/// Billions per second of a launch that returns what it does.
template <class LaunchRate>
double rate(const LaunchRate& launch_rate) {
  constexpr int kLaunches = 8;
  double work = 0;
  const Timing timing =
      time_graph([&](int, cudaStream_t stream) { work = launch_rate(stream); }, kLaunches, 0.05);
  return work / timing.chain_us * 1e-3;
}

}  // namespace

Calibration calibrate(int device) {
  const DeviceFacts& facts = device_facts(device);
  const DeviceScope scope(device);
  Limits streams;
  Calibration calibration{.launch_us = streams.empty_us(), .replay_us = streams.empty_single_us()};
  for (const int mb : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}) {
    const double bytes = mb * kMega;
    const auto whole = static_cast<int64_t>(bytes);
    calibration.streams.push_back({.bytes = bytes,
                                   .read_us = streams.read_us(whole),
                                   .write_us = streams.write_us(whole),
                                   .copy_us = streams.copy_us(whole)});
  }
  MachineLimits& limits = calibration.limits;
  limits.backend = BackendKind::kCuda;
  limits.device = facts.name;
  const StreamTimes& largest = calibration.streams.back();
  limits.read_gbps = largest.bytes / largest.read_us * 1e-3;
  limits.copy_gbps = largest.bytes / largest.copy_us * 1e-3;
  const DeviceBuffer sink(sizeof(float));
  limits.f32_gflops = rate([&](cudaStream_t stream) {
    return launch_f32_rate(sink.as<float>(), facts.num_sms, stream);
  });
  if (facts.capability == 90) {
    const auto matrix = [&](sm90::MatrixOperands operands) {
      return rate([&](cudaStream_t stream) {
        return sm90::launch_matrix_rate(operands, sink.as<float>(), facts.num_sms, stream);
      });
    };
    limits.bf16_gflops = matrix(sm90::MatrixOperands::kBf16);
    limits.fp8_gflops = matrix(sm90::MatrixOperands::kE4m3);
    limits.int8_gops = matrix(sm90::MatrixOperands::kS8);
  }
  return calibration;
}

}  // namespace switchyard::cuda
