#pragma once
// The steps of the CPU backend, one file each. Arguments are valid when they arrive here; nothing
// allocates.

#include "backend.h"

namespace switchyard::cpu {

void route(const RoutingSpec& spec, const ops::RouteArgs& args);
void sort(const ops::SortArgs& args);
void quantize(const ops::QuantizeArgs& args);
void activate(const ops::ActivateArgs& args);
void combine(const ops::CombineArgs& args);
void rms_norm(const RmsNormArgs& args);

}  // namespace switchyard::cpu
