#pragma once
// What this machine's CPU can do at most.

#include <functional>

#include "switchyard/plan.h"

namespace switchyard::cpu {

/// num_threads 0 = all.
MachineLimits measure_machine(int num_threads);
/// As switchyard::read_meter.
std::function<double()> make_read_meter(int num_threads);

}  // namespace switchyard::cpu
