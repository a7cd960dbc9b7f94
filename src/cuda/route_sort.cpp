#include "cuda/route_sort.h"

#include "cuda/check.h"
#include "cuda/sm90/route_sort.h"

namespace switchyard::cuda {

bool can_route_and_sort(const LayerSpec& spec, int64_t num_tokens, int device) {
  return device_facts(device).capability == 90 && !spec.routing.hash &&
         num_tokens <= sm90::kRouteSortTokens && spec.num_routed() <= sm90::kRouteSortExperts &&
         spec.top_k <= sm90::kRouteSortTopK;
}

void route_and_sort(const RouteRequest* request, const SortJob& job, void* scratch, int device,
                    Stream stream) {
  if (request != nullptr && job.tokens.limit > 0) {
    return sm90::route_sort(route_job(request->spec, request->args), job, {}, stream);
  }
  sort(job, plan_sort(job.tokens.limit, job.top_k, job.num_experts, job.unit_size), scratch, device,
       stream);
}

}  // namespace switchyard::cuda
