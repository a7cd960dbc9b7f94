#pragma once
// The one way GPU work is timed: launches over rotating data in a CUDA graph, median of replays.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "cuda/device_buffer.h"

namespace switchyard::cuda {

/// Launches copy `i` of a step (its own data) on a stream.
using Launch = std::function<void(int i, cudaStream_t stream)>;

struct Timing {
  double chain_us = 0;  ///< per launch, inside a graph of many: what an engine sees
  double single_us =
      0;  ///< a graph of one launch between two events, event and launch cost included
};
/// `copies` sets of data; a graph of them all, replayed for about `budget_s` seconds at most.
Timing time_graph(const Launch& launch, int copies, double budget_s = 1);

/// Copies such that together they exceed the L2 several times; at least 8, at most 40.
int rotation(int64_t bytes_per_copy);

/// Times of plain kernels that move the same bytes the same way: the better of two, measured once
/// per size.
class Limits {
 public:
  Limits();
  double empty_us() const { return empty_.chain_us; }
  double empty_single_us() const { return empty_.single_us; }
  double read_us(int64_t bytes) { return cached(reads_, bytes, Kind::kRead); }
  double write_us(int64_t bytes) { return cached(writes_, bytes, Kind::kWrite); }
  /// bytes: read and written together.
  double copy_us(int64_t bytes) { return cached(copies_, bytes, Kind::kCopy); }

 private:
  enum class Kind { kRead, kWrite, kCopy };
  double cached(std::map<int64_t, double>& known, int64_t bytes, Kind kind);

  DeviceBuffer memory_;
  Timing empty_;
  std::map<int64_t, double> reads_, writes_, copies_;
};

}  // namespace switchyard::cuda
