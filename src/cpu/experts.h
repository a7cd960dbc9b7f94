#pragma once
// The objects that the CPU backend hands out.

#include <memory>

#include "backend.h"
#include "cpu/numa.h"

namespace switchyard::cpu {

std::unique_ptr<PackedExperts> make_experts(const LayerSpec& spec, const ExpertSource& source,
                                            const LayerOptions& options,
                                            const NumaTopology& topology = system_topology());
std::unique_ptr<PackedLinear> make_linear(const WeightMatrix& matrix, const TensorView& bias,
                                          const LayerOptions& options);

}  // namespace switchyard::cpu
