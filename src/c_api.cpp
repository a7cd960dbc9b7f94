// The C interface over the C++ one: structs become values, exceptions become status codes.

#include "switchyard/c_api.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "layer/check.h"
#include "switchyard/switchyard.h"

namespace sw = switchyard;
using sw::require;

namespace {

thread_local std::string last_error_message;

sy_status fail(sy_status status, const char* message) noexcept {
  try {
    last_error_message = message;
  } catch (...) {
    last_error_message.clear();
  }
  return status;
}

/// Runs `body`; nothing is thrown past here.
template <class Body>
sy_status guarded(Body&& body) noexcept {
  try {
    body();
    return SY_OK;
  } catch (const sw::Error& error) {
    return fail(static_cast<sy_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(SY_OUT_OF_MEMORY, "an allocation failed");
  } catch (const std::exception& error) {
    return fail(SY_INTERNAL, error.what());
  } catch (...) {
    return fail(SY_INTERNAL, "an unknown exception");
  }
}

// The numbers of the header are those of the C++ enumerations.
template <class Enum>
constexpr bool same(int number, Enum value) {
  return number == static_cast<int>(value);
}
static_assert(same(SY_INVALID_ARGUMENT, sw::ErrorCode::kInvalidArgument) &&
              same(SY_UNSUPPORTED, sw::ErrorCode::kUnsupported) &&
              same(SY_OUT_OF_MEMORY, sw::ErrorCode::kOutOfMemory) &&
              same(SY_DEVICE, sw::ErrorCode::kDevice) &&
              same(SY_COMMUNICATION, sw::ErrorCode::kCommunication) &&
              same(SY_INTERNAL, sw::ErrorCode::kInternal) &&
              same(SY_INVALID_FILE, sw::ErrorCode::kInvalidFile));
static_assert(same(SY_F32, sw::DataType::kF32) && same(SY_F16, sw::DataType::kF16) &&
              same(SY_BF16, sw::DataType::kBf16) && same(SY_F8_E4M3, sw::DataType::kF8E4m3) &&
              same(SY_F8_E5M2, sw::DataType::kF8E5m2) && same(SY_F8_E8M0, sw::DataType::kF8E8m0) &&
              same(SY_I8, sw::DataType::kI8) && same(SY_U8, sw::DataType::kU8) &&
              same(SY_I32, sw::DataType::kI32) && same(SY_I64, sw::DataType::kI64) &&
              same(SY_F64, sw::DataType::kF64) && same(SY_I16, sw::DataType::kI16) &&
              same(SY_BOOL, sw::DataType::kBool) && same(SY_U32, sw::DataType::kU32));
static_assert(same(SY_FORMAT_F32, sw::Format::kF32) && same(SY_FORMAT_F16, sw::Format::kF16) &&
              same(SY_FORMAT_BF16, sw::Format::kBf16) &&
              same(SY_FORMAT_FP8_E4M3, sw::Format::kFp8E4m3) &&
              same(SY_FORMAT_FP8_E5M2, sw::Format::kFp8E5m2) &&
              same(SY_FORMAT_INT8, sw::Format::kInt8) && same(SY_FORMAT_INT4, sw::Format::kInt4) &&
              same(SY_FORMAT_MXFP4, sw::Format::kMxfp4) &&
              same(SY_FORMAT_MXFP8, sw::Format::kMxfp8) &&
              same(SY_FORMAT_NVFP4, sw::Format::kNvfp4));
static_assert(same(SY_ACTIVATIONS_AUTO, sw::ActivationFormat::kAuto) &&
              same(SY_ACTIVATIONS_NONE, sw::ActivationFormat::kNone) &&
              same(SY_ACTIVATIONS_INT8_BLOCK32, sw::ActivationFormat::kInt8Block32) &&
              same(SY_ACTIVATIONS_INT8_PER_TOKEN, sw::ActivationFormat::kInt8PerToken) &&
              same(SY_ACTIVATIONS_INT8_PER_SLOT, sw::ActivationFormat::kInt8PerSlot) &&
              same(SY_ACTIVATIONS_FP8_PER_TENSOR, sw::ActivationFormat::kFp8PerTensor) &&
              same(SY_ACTIVATIONS_FP8_PER_TOKEN, sw::ActivationFormat::kFp8PerToken) &&
              same(SY_ACTIVATIONS_FP8_BLOCK128, sw::ActivationFormat::kFp8Block128) &&
              same(SY_ACTIVATIONS_MXFP8, sw::ActivationFormat::kMxfp8) &&
              same(SY_ACTIVATIONS_MXFP4, sw::ActivationFormat::kMxfp4));
static_assert(same(SY_SCORING_SOFTMAX, sw::Scoring::kSoftmax) &&
              same(SY_SCORING_SIGMOID, sw::Scoring::kSigmoid) &&
              same(SY_SCORING_SQRT_SOFTPLUS, sw::Scoring::kSqrtSoftplus) &&
              same(SY_GROUP_SCORE_TOP2_SUM, sw::GroupScore::kTop2Sum) &&
              same(SY_GROUP_SCORE_MAX, sw::GroupScore::kMax));
static_assert(same(SY_SWIGLU, sw::Activation::kSwiGlu) &&
              same(SY_SWIGLU_CLAMP, sw::Activation::kSwiGluClamp) &&
              same(SY_SWIGLU_OAI, sw::Activation::kSwiGluOai) &&
              same(SY_GEGLU_TANH, sw::Activation::kGeGluTanh) &&
              same(SY_GEGLU, sw::Activation::kGeGlu) && same(SY_SITU, sw::Activation::kSiTu) &&
              same(SY_RELU2, sw::Activation::kRelu2) &&
              same(SY_WEIGHT_ON_OUTPUT, sw::WeightPosition::kOutput) &&
              same(SY_WEIGHT_ON_INPUT, sw::WeightPosition::kInput));
static_assert(same(SY_GATE_UP_CONCATENATED, sw::GateUpOrder::kConcatenated) &&
              same(SY_GATE_UP_INTERLEAVED, sw::GateUpOrder::kInterleaved) &&
              same(SY_BACKEND_AUTO, sw::BackendKind::kAuto) &&
              same(SY_BACKEND_CPU, sw::BackendKind::kCpu) &&
              same(SY_BACKEND_CUDA, sw::BackendKind::kCuda) &&
              same(SY_BACKEND_REFERENCE, sw::BackendKind::kReference));
static_assert(same(SY_SCALE_DOWN, sw::ScaleRounding::kDown) &&
              same(SY_SCALE_UP, sw::ScaleRounding::kUp) &&
              same(SY_SCALE_EVEN, sw::ScaleRounding::kEven) &&
              same(SY_SCALE_CEIL, sw::ScaleRounding::kCeil));
static_assert(SY_WORKSPACE_ALIGNMENT == sw::kWorkspaceAlignment);

// ---- arguments

template <class T>
void require_pointer(const char* name, const T* pointer) {
  require(pointer != nullptr, "{} is null; it must point to something", name);
}

template <class Struct>
void require_size(const char* name, const Struct* in) {
  require_pointer(name, in);
  require(in->struct_size >= sizeof(size_t),
          "{}.struct_size is {}; it must be sizeof the struct, {}", name, in->struct_size,
          sizeof(Struct));
}

/// The caller's struct in this library's size: fields that the caller does not know keep `values`,
/// fields that the library does not know must be zero.
template <class Struct>
Struct read(const char* name, const Struct* in, Struct values = {}) {
  require_size(name, in);
  const auto* bytes = reinterpret_cast<const unsigned char*>(in);
  for (size_t i = sizeof(Struct); i < in->struct_size; ++i) {
    if (bytes[i] == 0) continue;
    throw sw::Error(sw::ErrorCode::kUnsupported,
                    fmt::format("{}.struct_size is {}; this library knows {} bytes and byte {} is "
                                "not zero",
                                name, in->struct_size, sizeof(Struct), i));
  }
  std::memcpy(static_cast<void*>(&values), in, std::min(in->struct_size, sizeof(Struct)));
  return values;
}

/// Writes as much of `values` as the caller's struct holds.
template <class Struct>
void write(const char* name, Struct* out, Struct values) {
  require_size(name, out);
  values.struct_size = out->struct_size;
  std::memcpy(static_cast<void*>(out), &values, std::min(out->struct_size, sizeof(Struct)));
}

template <class Struct>
sy_status init(const char* name, Struct* out, size_t struct_size, const Struct& defaults) {
  return guarded([&] {
    require_pointer(name, out);
    require(struct_size >= sizeof(size_t), "struct_size is {}; it must be sizeof the struct, {}",
            struct_size, sizeof(Struct));
    std::memset(static_cast<void*>(out), 0, struct_size);
    out->struct_size = struct_size;
    write(name, out, defaults);
  });
}

template <class Enum>
Enum enumerator(const char* name, int32_t value, Enum last) {
  require(value >= 0 && value <= static_cast<int32_t>(last), "{} is {}; it must be 0 to {}", name,
          value, static_cast<int32_t>(last));
  return static_cast<Enum>(value);
}

sw::Format format_of(const char* name, sy_format format) {
  return enumerator(name, format, sw::Format::kNvfp4);
}
sw::BackendKind backend_of(const char* name, int32_t backend) {
  return enumerator(name, backend, sw::BackendKind::kReference);
}

sw::TensorView view(const char* name, const sy_tensor& tensor) {
  require(tensor.rank >= 0 && tensor.rank <= sw::TensorView::kMaxRank,
          "{}.rank is {}; it must be 0 to {}", name, tensor.rank, sw::TensorView::kMaxRank);
  sw::TensorView out{.data = tensor.data,
                     .type = enumerator(name, tensor.type, sw::DataType::kU32),
                     .rank = tensor.rank};
  bool contiguous = true;
  for (int d = 0; d < tensor.rank; ++d) {
    require(tensor.shape[d] >= 0, "{}.shape[{}] is {}; it must not be negative", name, d,
            tensor.shape[d]);
    out.shape[static_cast<size_t>(d)] = tensor.shape[d];
    out.strides[static_cast<size_t>(d)] = tensor.strides[d];
    contiguous = contiguous && tensor.strides[d] == 0;
  }
  if (!contiguous) return out;
  int64_t stride = 1;
  for (int d = tensor.rank - 1; d >= 0; --d) {
    out.strides[static_cast<size_t>(d)] = stride;
    require(!__builtin_mul_overflow(stride, std::max<int64_t>(1, tensor.shape[d]), &stride),
            "{} has more elements than 63 bits count; shape[{}] is {}", name, d, tensor.shape[d]);
  }
  return out;
}

// ---- the facts of a layer

sy_routing to_c(const sw::RoutingSpec& routing) {
  return {.struct_size = sizeof(sy_routing),
          .scoring = static_cast<int32_t>(routing.scoring),
          .renormalize = routing.renormalize,
          .renormalize_epsilon = routing.renormalize_epsilon,
          .num_groups = routing.num_groups,
          .topk_groups = routing.topk_groups,
          .group_score = static_cast<int32_t>(routing.group_score),
          .routed_scaling_factor = routing.routed_scaling_factor,
          .hash = routing.hash};
}

sw::RoutingSpec routing_of(const sy_routing* in) {
  if (in == nullptr) return {};
  const sy_routing c = read("routing", in, to_c(sw::RoutingSpec{}));
  return {.scoring = enumerator("routing.scoring", c.scoring, sw::Scoring::kSqrtSoftplus),
          .renormalize = c.renormalize != 0,
          .renormalize_epsilon = c.renormalize_epsilon,
          .num_groups = c.num_groups,
          .topk_groups = c.topk_groups,
          .group_score = enumerator("routing.group_score", c.group_score, sw::GroupScore::kMax),
          .routed_scaling_factor = c.routed_scaling_factor,
          .hash = c.hash != 0};
}

sy_activation to_c(const sw::ActivationSpec& activation) {
  return {.struct_size = sizeof(sy_activation),
          .kind = static_cast<int32_t>(activation.kind),
          .alpha = activation.alpha,
          .limit = activation.limit,
          .beta = activation.beta,
          .linear_beta = activation.linear_beta};
}

sw::ActivationSpec activation_of(const sy_activation* in) {
  if (in == nullptr) return {};
  const sy_activation c = read("activation", in, to_c(sw::ActivationSpec{}));
  return {.kind = enumerator("activation.kind", c.kind, sw::Activation::kRelu2),
          .alpha = c.alpha,
          .limit = c.limit,
          .beta = c.beta,
          .linear_beta = c.linear_beta};
}

/// Without routing and activation, which the C struct only points to.
sy_layer_spec to_c(const sw::LayerSpec& spec) {
  return {.struct_size = sizeof(sy_layer_spec),
          .num_experts = spec.num_experts,
          .top_k = spec.top_k,
          .hidden_size = spec.hidden_size,
          .intermediate_size = spec.intermediate_size,
          .latent_size = spec.latent_size,
          .routing = nullptr,
          .activation = nullptr,
          .shared_intermediate_size = spec.shared.intermediate_size,
          .shared_sigmoid_gate = spec.shared.sigmoid_gate,
          .weight_position = static_cast<int32_t>(spec.weight_position),
          .num_fused_shared = spec.num_fused_shared,
          .fused_shared_weight = spec.fused_shared_weight,
          .weight_format = static_cast<int32_t>(spec.weight_format),
          .weight_scale_block_rows = spec.weight_scale_block.rows,
          .weight_scale_block_cols = spec.weight_scale_block.cols,
          .activation_format = static_cast<int32_t>(spec.activation_format),
          .latent_norm_epsilon = spec.latent_norm_epsilon};
}

sw::LayerSpec spec_of(const sy_layer_spec* in) {
  const sy_layer_spec c = read("spec", in, to_c(sw::LayerSpec{}));
  return {.num_experts = c.num_experts,
          .top_k = c.top_k,
          .hidden_size = c.hidden_size,
          .intermediate_size = c.intermediate_size,
          .latent_size = c.latent_size,
          .routing = routing_of(c.routing),
          .activation = activation_of(c.activation),
          .shared = {c.shared_intermediate_size, c.shared_sigmoid_gate != 0},
          .num_fused_shared = c.num_fused_shared,
          .fused_shared_weight = c.fused_shared_weight,
          .weight_position =
              enumerator("spec.weight_position", c.weight_position, sw::WeightPosition::kInput),
          .weight_format = format_of("spec.weight_format", c.weight_format),
          .weight_scale_block = {c.weight_scale_block_rows, c.weight_scale_block_cols},
          .activation_format = enumerator("spec.activation_format", c.activation_format,
                                          sw::ActivationFormat::kMxfp4),
          .latent_norm_epsilon = c.latent_norm_epsilon};
}

// ---- weights

sw::WeightMatrix matrix_of(const char* name, const sy_matrix* in) {
  if (in == nullptr) return {};
  const sy_matrix c = read(name, in);
  return {.format = format_of(name, c.format),
          .rows = c.rows,
          .cols = c.cols,
          .values = view(name, c.values),
          .scales = view(name, c.scales),
          .scale_block = {c.scale_block_rows, c.scale_block_cols},
          .scale_row_begin = c.scale_row_begin,
          .scale_row_step = c.scale_row_step == 0 ? 1 : c.scale_row_step,
          .global_scale = c.global_scale == 0.0f ? 1.0f : c.global_scale,
          .zero_points = view(name, c.zero_points),
          .group_index = view(name, c.group_index),
          .smooth_scales = view(name, c.smooth_scales)};
}

sw::ExpertWeights expert_of(const sy_expert& c) {
  return {.gate = matrix_of("gate", c.gate),
          .up = matrix_of("up", c.up),
          .down = matrix_of("down", c.down),
          .gate_bias = view("gate_bias", c.gate_bias),
          .up_bias = view("up_bias", c.up_bias),
          .down_bias = view("down_bias", c.down_bias)};
}

sw::ExpertSource source_of(const sy_expert_source* in) {
  const sy_expert_source c = read("weights.experts", in);
  require(c.load != nullptr, "weights.experts.load is null; it must hand over an expert");
  sw::ExpertSource source{.num_experts = c.num_experts};
  source.load = [c](int64_t expert) {
    sy_expert out{};
    out.struct_size = sizeof(out);
    const sy_status status = c.load(c.context, expert, &out);
    if (status != SY_OK) {
      const bool known = status >= SY_INVALID_ARGUMENT && status <= SY_INVALID_FILE;
      throw sw::Error(known ? static_cast<sw::ErrorCode>(status) : sw::ErrorCode::kInvalidArgument,
                      fmt::format("weights.experts.load({}) returned {}; it must return SY_OK",
                                  expert, status));
    }
    require(out.struct_size <= sizeof(out),
            "weights.experts.load({}) left struct_size {}; there is room for {}", expert,
            out.struct_size, sizeof(out));
    return expert_of(out);
  };
  if (c.release != nullptr) {
    source.release = [c](int64_t expert) { c.release(c.context, expert); };
  }
  return source;
}

sw::StackedExperts stacked_of(const sy_stacked_experts* in, bool gated) {
  const sy_stacked_experts c = read("weights.stacked", in);
  return {.format = format_of("weights.stacked.format", c.format),
          .scale_block = {c.scale_block_rows, c.scale_block_cols},
          .order = enumerator("weights.stacked.order", c.order, sw::GateUpOrder::kInterleaved),
          .gated = gated,
          .gate_up = view("gate_up", c.gate_up),
          .gate_up_scales = view("gate_up_scales", c.gate_up_scales),
          .gate_up_bias = view("gate_up_bias", c.gate_up_bias),
          .down = view("down", c.down),
          .down_scales = view("down_scales", c.down_scales),
          .down_bias = view("down_bias", c.down_bias),
          .gate_up_global_scales = view("gate_up_global_scales", c.gate_up_global_scales),
          .down_global_scales = view("down_global_scales", c.down_global_scales),
          .gate_up_zero_points = view("gate_up_zero_points", c.gate_up_zero_points),
          .down_zero_points = view("down_zero_points", c.down_zero_points),
          .gate_up_smooth_scales = view("gate_up_smooth_scales", c.gate_up_smooth_scales),
          .down_smooth_scales = view("down_smooth_scales", c.down_smooth_scales)};
}

sw::Weights weights_of(const sy_weights* in, bool gated) {
  const sy_weights c = read("weights", in);
  require((c.stacked == nullptr) != (c.experts == nullptr),
          "weights.stacked and weights.experts are {}; exactly one of them must be given",
          c.stacked == nullptr ? "both null" : "both given");
  sw::Weights weights;
  weights.experts =
      c.stacked != nullptr ? sw::expert_source(stacked_of(c.stacked, gated)) : source_of(c.experts);
  weights.router = {.projection = matrix_of("router", c.router),
                    .logit_bias = view("logit_bias", c.logit_bias),
                    .selection_bias = view("selection_bias", c.selection_bias),
                    .per_expert_scale = view("per_expert_scale", c.per_expert_scale),
                    .tid2eid = view("tid2eid", c.tid2eid),
                    .input_norm_scale = view("input_norm_scale", c.input_norm_scale),
                    .input_norm_epsilon = c.input_norm_epsilon};
  if (c.shared != nullptr) weights.shared = expert_of(read("weights.shared", c.shared));
  weights.shared_gate = matrix_of("shared_gate", c.shared_gate);
  weights.latent_down = matrix_of("latent_down", c.latent_down);
  weights.latent_norm = view("latent_norm", c.latent_norm);
  weights.latent_up = matrix_of("latent_up", c.latent_up);
  return weights;
}

// ---- layers

/// The caller's threads.
class LentExecutor final : public sw::Executor {
 public:
  explicit LentExecutor(const sy_executor& lender) : lender_(lender) {}
  int num_threads() const noexcept override { return lender_.num_threads; }
  void run(void (*fn)(void*, int), void* context) override {
    lender_.run(lender_.context, fn, context);
  }

 private:
  sy_executor lender_;
};

struct Options {
  sw::LayerOptions options{};
  std::unique_ptr<LentExecutor> executor{};
};

Options options_of(const sy_layer_options* in) {
  if (in == nullptr) return {};
  const sy_layer_options c = read("options", in);
  Options out;
  out.options.backend = backend_of("options.backend", c.backend);
  out.options.device = c.device;
  out.options.num_threads = c.num_threads;
  if (c.cpu_isa != nullptr) out.options.cpu_isa = c.cpu_isa;
  if (c.executor != nullptr) {
    const sy_executor lender = read("options.executor", c.executor);
    require(lender.run != nullptr, "options.executor.run is null; it must run work");
    require(lender.num_threads >= 1, "options.executor.num_threads is {}; it must be at least 1",
            lender.num_threads);
    out.executor = std::make_unique<LentExecutor>(lender);
    out.options.executor = out.executor.get();
  }
  if (c.on_progress != nullptr) {
    out.options.on_progress = [c](int64_t done, int64_t total) {
      c.on_progress(c.progress_context, done, total);
    };
  }
  return out;
}

sw::ops::Execution execution_of(const sy_execution* in) {
  if (in == nullptr) return {};
  const sy_execution c = read("execution", in);
  const sw::BackendKind backend = backend_of("execution.backend", c.backend);
  return {.backend = backend == sw::BackendKind::kAuto ? sw::BackendKind::kCpu : backend,
          .device = c.device,
          .stream = {c.stream},
          .workspace = {c.workspace, c.workspace_bytes}};
}

sy_quantize_args to_c(const sw::ops::QuantizeArgs& args) {
  sy_quantize_args c{};
  c.struct_size = sizeof(c);
  c.format = static_cast<int32_t>(args.format);
  c.rounding = static_cast<int32_t>(args.rounding);
  c.scale_block_rows = args.scale_block.rows;
  c.scale_block_cols = args.scale_block.cols;
  c.global_scale = args.global_scale;
  return c;
}

}  // namespace

struct sy_layer {
  std::unique_ptr<LentExecutor> executor;  // outlives the layer below
  sw::Layer layer;
};

namespace {

void create(const sw::LayerSpec& spec, const sw::Weights& weights, Options options,
            sy_layer** layer) {
  sw::Layer made = sw::Layer::create(spec, weights, options.options);
  *layer = new sy_layer{std::move(options.executor), std::move(made)};
}

}  // namespace

extern "C" {

int32_t sy_abi_version(void) { return SY_ABI_VERSION; }
const char* sy_version(void) { return SWITCHYARD_VERSION; }
const char* sy_last_error_message(void) { return last_error_message.c_str(); }

const char* sy_status_name(sy_status status) {
  if (status == SY_OK) return "ok";
  if (status < SY_INVALID_ARGUMENT || status > SY_INVALID_FILE) return "unknown";
  return sw::to_string(static_cast<sw::ErrorCode>(status));
}

sy_status sy_routing_init(sy_routing* routing, size_t struct_size) {
  return init("routing", routing, struct_size, to_c(sw::RoutingSpec{}));
}
sy_status sy_activation_init(sy_activation* activation, size_t struct_size) {
  return init("activation", activation, struct_size, to_c(sw::ActivationSpec{}));
}
sy_status sy_layer_spec_init(sy_layer_spec* spec, size_t struct_size) {
  return init("spec", spec, struct_size, to_c(sw::LayerSpec{}));
}
sy_status sy_quantize_args_init(sy_quantize_args* args, size_t struct_size) {
  return init("args", args, struct_size, to_c(sw::ops::QuantizeArgs{}));
}

sy_status sy_layer_create(const sy_layer_spec* spec, const sy_weights* weights,
                          const sy_layer_options* options, sy_layer** layer) {
  return guarded([&] {
    require_pointer("layer", layer);
    const sw::LayerSpec cpp_spec = spec_of(spec);
    const sw::Weights cpp_weights = weights_of(weights, cpp_spec.activation.gated());
    create(cpp_spec, cpp_weights, options_of(options), layer);
  });
}

sy_status sy_layer_create_from_checkpoint(const char* directory, int64_t layer_index,
                                          const sy_layer_options* options, sy_layer** layer) {
  return guarded([&] {
    require_pointer("layer", layer);
    require_pointer("directory", directory);
    Options cpp_options = options_of(options);
    const sw::Checkpoint checkpoint = sw::Checkpoint::open(directory);
    create(checkpoint.layer(layer_index).spec, checkpoint.weights(layer_index),
           std::move(cpp_options), layer);
  });
}

void sy_layer_destroy(sy_layer* layer) { delete layer; }

sy_status sy_layer_get_info(const sy_layer* layer, sy_layer_info* info) {
  return guarded([&] {
    require_pointer("layer", layer);
    const sw::LayerSpec& spec = layer->layer.spec();
    write("info", info,
          sy_layer_info{.struct_size = 0,
                        .num_experts = spec.num_experts,
                        .top_k = spec.top_k,
                        .hidden_size = spec.hidden_size,
                        .intermediate_size = spec.intermediate_size,
                        .weight_format = static_cast<int32_t>(spec.weight_format),
                        .hash = spec.routing.hash,
                        .backend = static_cast<int32_t>(layer->layer.backend()),
                        .packed_bytes = layer->layer.packed_bytes()});
  });
}

sy_status sy_layer_workspace_bytes(const sy_layer* layer, int64_t max_tokens, int64_t* bytes) {
  return guarded([&] {
    require_pointer("layer", layer);
    require_pointer("bytes", bytes);
    *bytes = layer->layer.workspace_bytes(max_tokens);
  });
}

sy_status sy_layer_forward(const sy_layer* layer, const sy_forward_args* args, void* workspace,
                           int64_t workspace_bytes, void* stream) {
  return guarded([&] {
    require_pointer("layer", layer);
    const sy_forward_args c = read("args", args);
    layer->layer.forward({.hidden_states = view("hidden_states", c.hidden_states),
                          .output = view("output", c.output),
                          .topk_ids = view("topk_ids", c.topk_ids),
                          .topk_weights = view("topk_weights", c.topk_weights),
                          .router_logits = view("router_logits", c.router_logits),
                          .input_ids = view("input_ids", c.input_ids),
                          .topk_ids_out = view("topk_ids_out", c.topk_ids_out),
                          .topk_weights_out = view("topk_weights_out", c.topk_weights_out),
                          .num_tokens = view("num_tokens", c.num_tokens)},
                         {workspace, workspace_bytes}, {stream});
  });
}

sy_status sy_layer_explain(const sy_layer* layer, int64_t num_tokens, char* text, size_t capacity,
                           size_t* length) {
  return guarded([&] {
    require_pointer("layer", layer);
    require_pointer("length", length);
    if (capacity > 0) require_pointer("text", text);
    const std::string plan = layer->layer.plan(num_tokens).explain();
    *length = plan.size();
    if (capacity == 0) return;
    const size_t copied = std::min(plan.size(), capacity - 1);
    std::memcpy(text, plan.data(), copied);
    text[copied] = '\0';
  });
}

sy_status sy_route(const sy_routing* routing, const sy_route_args* args,
                   const sy_execution* execution) {
  return guarded([&] {
    const sy_route_args c = read("args", args);
    sw::ops::route(
        routing_of(routing),
        {.router_logits = view("router_logits", c.router_logits),
         .logit_bias = view("logit_bias", c.logit_bias),
         .selection_bias = view("selection_bias", c.selection_bias),
         .per_expert_scale = view("per_expert_scale", c.per_expert_scale),
         .input_ids = view("input_ids", c.input_ids),
         .tid2eid = view("tid2eid", c.tid2eid),
         .num_fused_shared = c.num_fused_shared,
         .fused_shared_weight = c.fused_shared_weight == 0.0f ? 1.0f : c.fused_shared_weight,
         .num_tokens = view("num_tokens", c.num_tokens),
         .topk_ids = view("topk_ids", c.topk_ids),
         .topk_weights = view("topk_weights", c.topk_weights)},
        execution_of(execution));
  });
}

sy_status sy_sort_capacity(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                           int64_t unit_size, int64_t* capacity) {
  return guarded([&] {
    require_pointer("capacity", capacity);
    *capacity = sw::ops::sort_capacity(num_tokens, top_k, num_experts, unit_size);
  });
}

sy_status sy_sort_workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                  int64_t unit_size, int32_t backend, int64_t* bytes) {
  return guarded([&] {
    require_pointer("bytes", bytes);
    const sw::BackendKind kind = backend_of("backend", backend);
    *bytes = sw::ops::sort_workspace_bytes(
        num_tokens, top_k, num_experts, unit_size,
        kind == sw::BackendKind::kAuto ? sw::BackendKind::kCpu : kind);
  });
}

sy_status sy_sort(const sy_sort_args* args, const sy_execution* execution) {
  return guarded([&] {
    const sy_sort_args c = read("args", args);
    sw::ops::sort({.topk_ids = view("topk_ids", c.topk_ids),
                   .topk_weights = view("topk_weights", c.topk_weights),
                   .num_experts = c.num_experts,
                   .unit_size = c.unit_size,
                   .expert_mask = view("expert_mask", c.expert_mask),
                   .num_local_tokens = view("num_local_tokens", c.num_local_tokens),
                   .sorted_ids = view("sorted_ids", c.sorted_ids),
                   .sorted_weights = view("sorted_weights", c.sorted_weights),
                   .sorted_expert_ids = view("sorted_expert_ids", c.sorted_expert_ids),
                   .num_valid_ids = view("num_valid_ids", c.num_valid_ids),
                   .moe_buf = view("moe_buf", c.moe_buf),
                   .local_topk_ids = view("local_topk_ids", c.local_topk_ids),
                   .m_indices = view("m_indices", c.m_indices),
                   .reverse_sorted = view("reverse_sorted", c.reverse_sorted)},
                  execution_of(execution));
  });
}

sy_status sy_quantize(const sy_quantize_args* args, const sy_execution* execution) {
  return guarded([&] {
    const sy_quantize_args c = read("args", args, to_c(sw::ops::QuantizeArgs{}));
    sw::ops::quantize(
        {.input = view("input", c.input),
         .row_index = view("row_index", c.row_index),
         .channel_scale = view("channel_scale", c.channel_scale),
         .format = format_of("args.format", c.format),
         .scale_block = {c.scale_block_rows, c.scale_block_cols},
         .rounding = enumerator("args.rounding", c.rounding, sw::ScaleRounding::kCeil),
         .power_of_two_scales = c.power_of_two_scales != 0,
         .global_scale = c.global_scale,
         .values = view("values", c.values),
         .scales = view("scales", c.scales)},
        execution_of(execution));
  });
}

}  // extern "C"
