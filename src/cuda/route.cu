#include <algorithm>
#include <bit>

#include "core/math.h"
#include "cuda/launch.cuh"
#include "cuda/route.h"
#include "cuda/route_token.cuh"

namespace switchyard::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

template <int kSlots, RouteKind kKind>
__global__ void __launch_bounds__(kWarpsPerBlock* kLanes)
    route_kernel(const __grid_constant__ RouteParams params) {
  __shared__ RouteScratch scratch[kWarpsPerBlock];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const RouteJob& job = params.job;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (token >= job.tokens.limit) return;
  TokenRouter<kSlots, kKind> router(params, scratch[warp]);
  wait_for_previous_kernel();
  let_next_kernel_start();
  router.load_biases();  // not before: a caller's kernel may have written them
  router.route(token, token < job.tokens.value(),
               [&](int k, int32_t id, float weight) { write_choice(job, token, k, id, weight); });
}

}  // namespace

RouteJob route_job(const RouteRequest& request) {
  const ops::RouteArgs& args = request.args;
  const auto is_wide = [](const TensorView& ids) { return ids.type == DataType::kI64; };
  const int64_t columns = args.topk_ids.extent(1);
  return {.spec = request.spec,
          .logits = args.router_logits.data,
          .logits_type = args.router_logits.type,
          .logit_bias = args.logit_bias.data,
          .logit_bias_type = args.logit_bias.type,
          .selection_bias = args.selection_bias.as<const float>(),
          .per_expert_scale = args.per_expert_scale.as<const float>(),
          .input_ids = args.input_ids.data,
          .input_ids_wide = is_wide(args.input_ids),
          .tid2eid = args.tid2eid.data,
          .tid2eid_wide = is_wide(args.tid2eid),
          .vocab = args.tid2eid.empty() ? 0 : args.tid2eid.extent(0),
          .tokens = {.limit = args.router_logits.extent(0),
                     .on_device = args.num_tokens.as<const int32_t>()},
          .num_experts = static_cast<int32_t>(args.router_logits.extent(1)),
          .top_k = static_cast<int32_t>(columns - args.num_fused_shared),
          .num_fused_shared = static_cast<int32_t>(args.num_fused_shared),
          .fused_shared_weight = args.fused_shared_weight,
          .shared_weights = request.shared_weights.as<const float>(),
          .topk_ids = args.topk_ids.as<int32_t>(),
          .topk_weights = args.topk_weights.as<float>(),
          .routed_ids = request.routed_ids.as<int32_t>(),
          .routed_weights = request.routed_weights.as<float>()};
}

int route_slots(int32_t num_experts) {
  return num_experts > 1024  ? 128
         : num_experts > 512 ? 32
         : num_experts > 256 ? 16
         : num_experts > 128 ? 8
                             : 4;
}

namespace {

RouteKind kind_of(const RouteJob& job, bool even_groups) {
  const RoutingSpec& spec = job.spec;
  const bool biased = job.selection_bias != nullptr;
  if (spec.hash) return RouteKind::kAny;
  if (spec.scoring == Scoring::kSoftmax && spec.renormalize && spec.renormalize_epsilon == 0 &&
      spec.num_groups <= 1 && !biased) {
    return RouteKind::kLogits;
  }
  if (!biased || (spec.num_groups > 1 && !even_groups)) return RouteKind::kAny;
  switch (spec.scoring) {
    case Scoring::kSigmoid: return RouteKind::kBiasedSigmoid;
    case Scoring::kSqrtSoftplus: return RouteKind::kBiasedSqrtSoftplus;
    case Scoring::kSoftmax: break;
  }
  return RouteKind::kAny;
}

using RouteKernel = void (*)(RouteParams);
struct Kernels {
  template <int kSlots, RouteKind kKind>
  static RouteKernel get() {
    return route_kernel<kSlots, kKind>;
  }
};

}  // namespace

RouteParams route_params(const RouteJob& job) {
  const int slots = route_slots(job.num_experts);
  const int64_t lane_bytes = slots * element_bytes(job.logits_type);
  const auto is_aligned = [](const void* p, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
  };
  const int group_lanes = job.num_experts / job.spec.num_groups / slots;
  const bool even = group_lanes * slots * job.spec.num_groups == job.num_experts &&
                    std::has_single_bit(static_cast<unsigned>(group_lanes));
  const bool whole_lanes = job.num_experts % slots == 0 && is_aligned(job.selection_bias, 16) &&
                           is_aligned(job.logits, std::min<int64_t>(lane_bytes, 16));
  constexpr int64_t kManyTokens = 1024;  // the GPU's warps have more than one each
  return {.job = job,
          .kind = whole_lanes ? kind_of(job, even) : RouteKind::kAny,
          .throughput = job.tokens.limit > kManyTokens,
          .whole_lanes = whole_lanes,
          .group_shift = even ? std::countr_zero(static_cast<unsigned>(group_lanes)) : -1};
}

void route(const RouteJob& job, int device, Stream stream) {
  if (job.tokens.limit == 0) return;
  const RouteParams params = route_params(job);
  const auto kernel = [&]() -> RouteKernel {
    switch (route_slots(job.num_experts)) {
      case 4: return route_kernel_of<Kernels, 4>(params.kind);
      case 8: return route_kernel_of<Kernels, 8>(params.kind);
      case 16: return route_kernel_of<Kernels, 16>(params.kind);
      case 32: return route_kernel_of<Kernels, 32>(params.kind);
      default: return route_kernel_of<Kernels, 128>(params.kind);
    }
  }();
  launch(kernel,
         {.grid = static_cast<unsigned>(ceil_div<int64_t>(job.tokens.limit, kWarpsPerBlock)),
          .block = kWarpsPerBlock * kLanes,
          .overlap_previous = device_facts(device).capability >= 90},
         static_cast<cudaStream_t>(stream.handle), params);
}

}  // namespace switchyard::cuda
