#pragma once
// The oracle: every step as plain loops in double. Short, obvious, never optimised.

#include <memory>

#include "backend.h"

namespace switchyard::reference {

void route(const RoutingSpec& spec, const ops::RouteArgs& args);
void sort(const ops::SortArgs& args);
void quantize(const ops::QuantizeArgs& args);
void activate(const ops::ActivateArgs& args);
void combine(const ops::CombineArgs& args);
void rms_norm(const RmsNormArgs& args);
std::unique_ptr<PackedExperts> pack_experts(const LayerSpec& spec, const ExpertSource& source,
                                            const LayerOptions& options);
std::unique_ptr<PackedLinear> pack_linear(const WeightMatrix& matrix, const TensorView& bias);

}  // namespace switchyard::reference
