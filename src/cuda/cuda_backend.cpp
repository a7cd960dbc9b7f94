// The CUDA backend: public arguments to jobs, on the device and stream of the call.

#include <fmt/format.h>

#include "backend.h"
#include "cuda/calibrate.h"
#include "cuda/combine.h"
#include "cuda/experts.h"
#include "cuda/graph_timing.h"
#include "cuda/linear.h"
#include "cuda/quantize.h"
#include "cuda/reachable.h"
#include "cuda/route.h"
#include "cuda/small_steps.h"
#include "cuda/sort.h"

namespace switchyard {
namespace cuda {
namespace {

TokenCount token_count(const TensorView& on_device, int64_t limit) {
  return {.limit = limit, .on_device = on_device.as<const int32_t>()};
}
int32_t to_i32(int64_t value) { return static_cast<int32_t>(value); }

class CudaBackend final : public Backend {
 public:
  BackendKind kind() const override { return BackendKind::kCuda; }
  std::string why_unavailable(int device) const override { return why_no_device(device); }

  std::string why_unsupported(const LayerSpec& spec) const override {
    if (spec.routing.num_groups > kMaxRoutedGroups) {
      return fmt::format("num_groups is {}; the routing kernel takes at most {}",
                         spec.routing.num_groups, kMaxRoutedGroups);
    }
    return {};
  }
  std::string device_name(const LayerOptions& options) const override {
    return device_facts(options.device).name;
  }

  void route(const RouteRequest& request, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("router_logits", request.args.router_logits);
    require_reachable("topk_ids", request.args.topk_ids);
    if (request.spec.num_groups > kMaxRoutedGroups) {
      throw Error(ErrorCode::kUnsupported, fmt::format("num_groups is {}; cuda takes at most {}",
                                                       request.spec.num_groups, kMaxRoutedGroups));
    }
    cuda::route(route_job(request), where.device, where.stream);
  }
  /// A chain of kernels of their own took R1's shared expert 14 us for a token.
  bool fuses_shared() const override { return true; }
  void append_shared(const AppendSharedArgs& args, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("topk_ids", args.routed_ids);
    require_reachable("topk_weights", args.routed_weights);
    cuda::append_shared(args, where.stream);
  }

  int64_t sort_workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                               int64_t /*unit_size*/) const override {
    return sort_scratch_bytes(num_tokens, top_k, num_experts);
  }

  void sort(const ops::SortArgs& args, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("topk_ids", args.topk_ids);
    require_reachable("sorted_ids", args.sorted_ids);
    const int64_t num_tokens = args.topk_ids.extent(0);
    const int64_t top_k = args.topk_ids.extent(1);
    const int64_t capacity = args.sorted_ids.extent(0);
    if (capacity > INT32_MAX) {
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("sorted_ids has {} rows; cuda sorts at most {}", capacity, INT32_MAX));
    }
    const TensorView& buffer = args.moe_buf;
    cuda::sort(
        {.topk_ids = args.topk_ids.as<const int32_t>(),
         .topk_weights = args.topk_weights.as<const int32_t>(),
         .expert_mask = args.expert_mask.as<const int32_t>(),
         .tokens = token_count(args.num_local_tokens, num_tokens),
         .top_k = to_i32(top_k),
         .num_experts = to_i32(args.num_experts),
         .unit_size = to_i32(args.unit_size),
         .capacity = to_i32(capacity),
         .num_blocks = to_i32(args.sorted_expert_ids.extent(0)),
         .num_valid = to_i32(args.num_valid_ids.extent(0)),
         .sorted_ids = args.sorted_ids.as<int32_t>(),
         .sorted_weights = args.sorted_weights.as<int32_t>(),
         .sorted_expert_ids = args.sorted_expert_ids.as<int32_t>(),
         .num_valid_ids = args.num_valid_ids.as<int32_t>(),
         .local_topk_ids = args.local_topk_ids.as<int32_t>(),
         .m_indices = args.m_indices.as<int32_t>(),
         .reverse_sorted = args.reverse_sorted.as<int32_t>(),
         .zeroed = buffer.data,
         .zeroed_bytes = buffer.empty() ? 0 : buffer.num_elements() * element_bytes(buffer.type)},
        plan_sort(num_tokens, top_k, args.num_experts, args.unit_size), where.workspace.data,
        where.device, where.stream);
  }

  void quantize(const ops::QuantizeArgs& args, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("input", args.input);
    require_reachable("values", args.values);
    const TensorView& values = args.values;
    cuda::quantize({.input = args.input.data,
                    .input_type = args.input.type,
                    .num_input_rows = args.input.extent(0),
                    .cols = args.input.extent(1),
                    .rows = {.limit = values.extent(0)},
                    .row_index = args.row_index.as<const int32_t>(),
                    .channel_scale = args.channel_scale.as<const float>(),
                    .format = args.format,
                    .scale_block = args.scale_block,
                    .rounding = args.rounding,
                    .power_of_two_scales = args.power_of_two_scales,
                    .global_scale = args.global_scale,
                    .values = values.data,
                    .value_row_bytes = values.stride(0),
                    .scales = args.scales.data,
                    .scale_type = args.scales.type},
                   where.stream);
  }

  void activate(const ops::ActivateArgs& args, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("input", args.input);
    require_reachable("output", args.output);
    cuda::activate(args, where.stream);
  }

  void activate_quantize(const ops::ActivateQuantizeArgs& args,
                         const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("input", args.input);
    require_reachable("values", args.quantized.values);
    cuda::activate_quantize(args, where.stream);
  }

  void combine(const ops::CombineArgs& args, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("expert_output", args.expert_output);
    require_reachable("output", args.output);
    const TensorView& input = args.expert_output;
    cuda::combine({.expert_output = input.data,
                   .input_type = input.type,
                   .topk_ids = args.topk_ids.as<const int32_t>(),
                   .expert_mask = args.expert_mask.as<const int32_t>(),
                   .num_experts = to_i32(args.num_experts),
                   .topk_weights = args.topk_weights.as<const float>(),
                   .addend = args.addend.data,
                   .addend_type = args.addend.type,
                   .residual = args.residual.data,
                   .residual_type = args.residual.type,
                   .tokens = token_count(args.num_tokens, input.extent(0)),
                   .top_k = to_i32(input.extent(1)),
                   .width = input.extent(2),
                   .output = args.output.data,
                   .output_type = args.output.type},
                  where.stream);
  }

  Calibration calibrate(const LayerOptions& options) const override {
    return cuda::calibrate(options.device);
  }
  CallTimes time_calls(int device, int count, const std::function<void(int, Stream)>& call,
                       double budget_s) const override {
    const DeviceScope scope(device);
    const Timing timing =
        time_graph([&](int i, cudaStream_t stream) { call(i, {stream}); }, count, budget_s);
    return {.chain_us = timing.chain_us, .single_us = timing.single_us};
  }

  void rms_norm(const RmsNormArgs& args, const ops::Execution& where) const override {
    const Scope scope(where);
    require_reachable("input", args.input);
    require_reachable("output", args.output);
    cuda::rms_norm(args, where.stream);
  }

  std::unique_ptr<PackedExperts> pack_experts(const LayerSpec& spec, const ExpertSource& source,
                                              const LayerOptions& options) const override {
    static_cast<void>(device_facts(options.device));
    return std::make_unique<CudaExperts>(spec, source, options);
  }
  std::unique_ptr<PackedLinear> pack_linear(const WeightMatrix& matrix, const TensorView& bias,
                                            const LayerOptions& options) const override {
    static_cast<void>(device_facts(options.device));
    return std::make_unique<CudaLinear>(matrix, bias, options);
  }
  std::shared_ptr<void> upload(const void* data, int64_t bytes,
                               const LayerOptions& options) const override {
    static_cast<void>(device_facts(options.device));
    const DeviceScope scope(options.device);
    const auto buffer = std::make_shared<DeviceBuffer>(bytes);
    if (data != nullptr) buffer->copy_from_host(0, data, bytes);
    return {buffer, buffer->data()};
  }
  void download(void* host, const void* data, int64_t bytes,
                const LayerOptions& options) const override {
    static_cast<void>(device_facts(options.device));
    const DeviceScope scope(options.device);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (bytes == 0) return;
    check(cudaMemcpy(host, data, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

 private:
  /// A usable device, current while the step is launched.
  struct Scope {
    explicit Scope(const ops::Execution& where)
        : facts(device_facts(where.device)), device(where.device) {}
    const DeviceFacts& facts;
    DeviceScope device;
  };
};

}  // namespace
}  // namespace cuda

const Backend* cuda_backend() {
  static const cuda::CudaBackend backend;
  return &backend;
}

}  // namespace switchyard
