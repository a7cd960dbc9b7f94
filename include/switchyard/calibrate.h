#pragma once
// What a machine can do, and how long calls take on a GPU: measured, not taken from a data sheet.

#include <cstdint>
#include <functional>
#include <vector>

#include "switchyard/export.h"
#include "switchyard/plan.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// Plain kernels that move `bytes`, each time other memory, so that no cache helps.
struct StreamTimes {
  double bytes = 0;
  double read_us = 0;
  double write_us = 0;
  double copy_us = 0;  ///< half of the bytes read, half written
};

/// The limits of a machine in more detail.
struct SWITCHYARD_EXPORT Calibration {
  MachineLimits limits{};
  std::vector<StreamTimes> streams{};  ///< cuda: by ascending size
  double launch_us = 0;                ///< cuda: an empty kernel in a graph of many
  double replay_us = 0;                ///< cuda: a graph of one empty kernel between two events

  /// Time of a plain read of `bytes`: between the sizes of `streams`, else by limits.read_gbps.
  double read_us(double bytes) const;
};
/// Measures for about a second. num_threads: of the cpu, 0 = all; device: CUDA ordinal.
SWITCHYARD_EXPORT Calibration calibrate(BackendKind backend = BackendKind::kCpu,
                                        int num_threads = 0, int device = 0);

/// A plain read by CPU threads, for timing between other work of the same seconds: every call reads
/// memory that no cache holds, for about a millisecond, and returns GB/s.
using ReadMeter = std::function<double()>;
/// num_threads: 0 = all.
SWITCHYARD_EXPORT ReadMeter read_meter(int num_threads = 0);

struct CallTimes {
  double chain_us = 0;   ///< per call, in one graph of all
  double single_us = 0;  ///< call 0 in a graph of its own, event and launch cost included
};
/// Times calls 0 .. count - 1 on a GPU the way an engine runs its layers: captured in one CUDA
/// graph that is replayed for about budget_s seconds; medians. A call queues work on its stream and
/// waits for nothing.
SWITCHYARD_EXPORT CallTimes time_calls(int device, int count,
                                       const std::function<void(int call, Stream stream)>& call,
                                       double budget_s = 1);

}  // namespace switchyard
