#pragma once
// The steps of the CPU backend, one file each. Arguments are valid when they arrive here; nothing
// allocates. Without an executor: on the process-wide pool.

#include "backend.h"
#include "cpu/thread_pool.h"

namespace switchyard::cpu {

void route(const RoutingSpec& spec, const ops::RouteArgs& args, Executor& executor);
void sort(const ops::SortArgs& args, Executor& executor);
void quantize(const ops::QuantizeArgs& args, Executor& executor);
void activate(const ops::ActivateArgs& args, Executor& executor);
void combine(const ops::CombineArgs& args, Executor& executor);
void rms_norm(const RmsNormArgs& args, Executor& executor);

inline void route(const RoutingSpec& spec, const ops::RouteArgs& args) {
  route(spec, args, default_pool());
}
inline void sort(const ops::SortArgs& args) { sort(args, default_pool()); }
inline void quantize(const ops::QuantizeArgs& args) { quantize(args, default_pool()); }
inline void activate(const ops::ActivateArgs& args) { activate(args, default_pool()); }
inline void combine(const ops::CombineArgs& args) { combine(args, default_pool()); }
inline void rms_norm(const RmsNormArgs& args) { rms_norm(args, default_pool()); }

}  // namespace switchyard::cpu
