#include "cuda/route_sort.h"

#include "cuda/check.h"
#include "cuda/sm90/route_sort.h"

namespace switchyard::cuda {

bool can_route_and_sort(const LayerSpec& spec, int64_t num_tokens, int device) {
  // The route of many experts is long and all blocks wait for the slowest: one launch is slower
  // than two but for few tokens (E896 K16: T=2 5.17 against 5.28 us, T=16 7.5 against 6.4).
  constexpr int64_t kManyExperts = 512, kFewTokens = 4;
  const int64_t most_tokens = spec.num_routed() > kManyExperts ? kFewTokens : kSortFewTokens;
  return device_facts(device).capability == 90 && !spec.routing.hash && num_tokens <= most_tokens &&
         plan_sort(num_tokens, spec.top_k, spec.num_experts, 1).path == SortPath::kFewTokens &&
         spec.top_k <= sm90::kRouteSortTopK &&
         sm90::can_route_sort(spec.num_routed(), spec.num_experts);
}

void route_and_sort(const RouteRequest* request, const SortJob& job, void* scratch, int device,
                    Stream stream) {
  if (request != nullptr && job.tokens.limit > 0) {
    return sm90::route_sort(route_job(*request), job, {}, stream);
  }
  sort(job, plan_sort(job.tokens.limit, job.top_k, job.num_experts, job.unit_size), scratch, device,
       stream);
}

}  // namespace switchyard::cuda
