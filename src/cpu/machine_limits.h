#pragma once
// What this machine's CPU can do at most.

#include "switchyard/calibrate.h"

namespace switchyard::cpu {

/// num_threads 0 = all.
MachineLimits measure_machine(int num_threads);
/// As switchyard::read_meter.
ReadMeter make_read_meter(int num_threads);

}  // namespace switchyard::cpu
