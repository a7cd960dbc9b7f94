#pragma once
// What this machine's CPU can do at most.

#include "switchyard/plan.h"

namespace switchyard::cpu {

/// num_threads 0 = all.
MachineLimits measure_machine(int num_threads);

}  // namespace switchyard::cpu
