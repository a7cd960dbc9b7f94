#pragma once
// What the experts of a layer begin with: the sort, and before it the routing where that has been
// left to them. Few tokens take one launch for both.

#include "backend.h"
#include "cuda/route.h"
#include "cuda/sort.h"

namespace switchyard::cuda {

/// What PackedExperts::routes() answers.
bool can_route_and_sort(const LayerSpec& spec, int64_t num_tokens, int device);

/// Sorts; with a request (RunExpertsArgs::route) routes first, and job.topk_ids and topk_weights
/// are what the request writes. Launched so that it overlaps the kernel before it and lets the next
/// one start early: what reads the lists sets overlap_previous and calls
/// wait_for_previous_kernel().
void route_and_sort(const RouteRequest* request, const SortJob& job, void* scratch, int device,
                    Stream stream);

}  // namespace switchyard::cuda
