#include "cuda/route_sort.h"

#include "cuda/check.h"
#include "cuda/sm90/route_sort.h"

namespace switchyard::cuda {

bool can_route_and_sort(const LayerSpec& spec, int64_t num_tokens, int device) {
  // Every block clears and counts all experts' bitmaps: with many of them one launch is slower than
  // two but for few tokens (E896 K16: T=4 7.1 against 8.5 us, T=16 13.6 against 9.6).
  constexpr int64_t kManyExperts = 512, kFewTokens = 4;
  const int64_t most_tokens = spec.num_routed() > kManyExperts ? kFewTokens : kSortFewTokens;
  return device_facts(device).capability == 90 && !spec.routing.hash && num_tokens <= most_tokens &&
         plan_sort(num_tokens, spec.top_k, spec.num_experts, 1).path == SortPath::kFewTokens &&
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
