#pragma once
// What a forward over packed experts will do, in words and predicted microseconds.

#include "cpu/packed_experts.h"
#include "switchyard/plan.h"

namespace switchyard::cpu {

void plan_experts(const ExpertPanels& panels, int64_t num_tokens, int64_t top_k,
                  const MachineLimits& limits, Plan& plan);

}  // namespace switchyard::cpu
