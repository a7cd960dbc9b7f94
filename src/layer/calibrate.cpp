// Public measurements: one call of the backend.

#include "switchyard/calibrate.h"

#include <fmt/format.h>

#include <algorithm>

#include "backend.h"
#include "layer/resolve_backend.h"

namespace switchyard {

double Calibration::read_us(double bytes) const {
  if (streams.size() < 2 || bytes > streams.back().bytes) {
    return limits.read_gbps > 0 ? bytes / limits.read_gbps * 1e-3 : 0;
  }
  const auto above =
      std::find_if(streams.begin() + 1, streams.end() - 1,
                   [bytes](const StreamTimes& stream) { return stream.bytes >= bytes; });
  const StreamTimes& low = *(above - 1);
  const double slope = (above->read_us - low.read_us) / (above->bytes - low.bytes);
  return std::max(low.read_us + slope * (bytes - low.bytes), launch_us);
}

Calibration calibrate(BackendKind kind, int num_threads, int device) {
  if (kind == BackendKind::kAuto) kind = BackendKind::kCpu;
  LayerOptions options;
  options.num_threads = num_threads;
  options.device = device;
  return backend_of({.backend = kind, .device = device}).calibrate(options);
}

MachineLimits measure_limits(BackendKind kind, int num_threads) {
  return calibrate(kind, num_threads).limits;
}

ReadMeter read_meter(int num_threads) {
  return backend_of({.backend = BackendKind::kCpu}).read_meter(num_threads);
}

CallTimes time_calls(int device, int count, const std::function<void(int, Stream)>& call,
                     double budget_s) {
  if (count < 1) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("count is {}; at least 1", count));
  }
  return backend_of({.backend = BackendKind::kCuda, .device = device})
      .time_calls(device, count, call, budget_s);
}

}  // namespace switchyard
