#pragma once
// The timing loop of `bench`, and what its samples say against the machine's limits.

#include <cstdint>
#include <vector>

#include "cli/bench_model.h"
#include "switchyard/calibrate.h"
#include "switchyard/plan.h"

namespace switchyard::cli {

struct Sample {
  double us = 0;
  int64_t distinct_experts = 0;
  double read_gbps = 0;  ///< cpu: of plain reads just before and after; 0: none were timed
};

/// Timed forwards of one token count, every one with its own routing on the next layer in turn.
struct Measurement {
  int64_t tokens = 0;
  std::vector<Sample> samples;
  double warm_fraction = 0;  ///< of the expert reads that the last-level cache may have served
  double imbalance = 0;      ///< median of: rows of the busiest expert over the mean
  double single_us = 0;      ///< cuda: one call in a graph of its own
  Plan plan;
};

struct MeasureOptions {
  double skew = 0;
  double budget_s = 1;
  int64_t l3_bytes = 0;
  ReadMeter read_meter{};  ///< not on a GPU
};
/// On a GPU every sample is the same: the median time per call of one CUDA graph.
Measurement measure(const BenchModel& model, int64_t tokens, const MeasureOptions& options);

/// Medians over the samples; each sample is set against its own distinct experts.
struct Summary {
  double median_us = 0;
  double p10_us = 0;
  double p90_us = 0;
  double distinct_experts = 0;  ///< mean
  double gbps = 0;              ///< distinct routed experts and shared experts, once each
  double gflops = 0;
  double limit_us = 0;
  double share = 0;      ///< limit over time
  double read_us = 0;    ///< a plain read of the same bytes
  double read_gbps = 0;  ///< of that read
  bool memory_bound = true;
};
Summary summarize(const BenchModel& model, const Measurement& measurement,
                  const Calibration& machine);

}  // namespace switchyard::cli
