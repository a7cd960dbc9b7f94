#pragma once
// The library's way of timing GPU work, under the benches' names.

#include "cuda/graph_timing.h"
#include "cuda/streaming.h"

namespace switchyard::bench {

using cuda::fill_random;
using cuda::Launch;
using cuda::Limits;
using cuda::rotation;
using cuda::time_graph;
using cuda::Timing;

}  // namespace switchyard::bench
