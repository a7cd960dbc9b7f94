#pragma once
// What a device must provide. Coarse on purpose: one virtual call per step of a layer, none inside
// a step. Arguments have been validated (src/layer/validate.h) before they arrive here.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "switchyard/calibrate.h"
#include "switchyard/layer.h"
#include "switchyard/ops.h"

namespace switchyard {

/// A call of Backend::route.
struct RouteRequest {
  RoutingSpec spec{};
  ops::RouteArgs args{};
  /// Only where Backend::fuses_shared(). Copies without the fused shared experts' columns, or
  /// empty: [T, K - num_fused_shared] i32 and f32.
  TensorView routed_ids{}, routed_weights{};
  /// Likewise. [T] f32 that takes the place of args.fused_shared_weight, or empty.
  TensorView shared_weights{};
};

/// A choice that others made, with fused shared experts behind it, as route would write it.
struct AppendSharedArgs {
  TensorView routed_ids{};      ///< [T, K] i32
  TensorView routed_weights{};  ///< [T, K] f32
  int64_t num_routed = 0;       ///< ids outside become -1
  float shared_weight = 1.0f;
  TensorView shared_weights{};  ///< [T] f32 that takes its place, or empty
  TensorView num_tokens{};      ///< [1] i32 or empty
  TensorView topk_ids{};        ///< out [T, K + n] i32: n ids from num_routed on are new
  TensorView topk_weights{};    ///< out [T, K + n] f32
};

/// Routed experts end to end: quantise, sort, gate_up, down, combine.
/// output[t] = addend[t] + sum over k of topk_weights[t, k] * expert(topk_ids[t,
/// k])(hidden_states[t])
struct RunExpertsArgs {
  TensorView hidden_states{};  ///< [T, W] f32, bf16 or f16; W = spec.expert_width()
  TensorView topk_ids{};      ///< [T, K] i32; empty: every token takes expert 0 (the shared expert)
  TensorView topk_weights{};  ///< [T, K] f32; empty: 1
  TensorView addend{};        ///< [T, W] f32 or empty; may be the same memory as an f32 output
  TensorView num_tokens{};    ///< [1] i32 or empty
  TensorView output{};        ///< [T, W] f32, bf16 or f16
  /// Null: topk_ids and topk_weights hold the choice. Else they are the request's own outputs and
  /// run() makes it first: a GPU routes and sorts a few tokens in one launch. Only for a token
  /// count that routes() accepts; the request lives as long as the call.
  const RouteRequest* route = nullptr;
};

/// Experts in the order a backend's kernels read them.
class PackedExperts {
 public:
  virtual ~PackedExperts() = default;
  virtual int64_t packed_bytes() const = 0;
  /// For run, gate_up, down and dense over up to max_tokens tokens of top_k choices.
  virtual int64_t workspace_bytes(int64_t max_tokens, int64_t top_k) const = 0;
  /// Appends the steps run() would take.
  virtual void plan(int64_t num_tokens, int64_t top_k, const MachineLimits& limits,
                    Plan& plan) const = 0;
  /// Whether run() wants to route such a batch itself (RunExpertsArgs::route).
  virtual bool routes(int64_t /*num_tokens*/) const { return false; }
  /// How to store vectors that stand for the hidden states, when those have this type.
  virtual DataType latent_type(DataType /*hidden_states*/) const { return DataType::kF32; }
  /// The threads that work here, for the steps around the experts; null: not the host's.
  virtual Executor* executor() const { return nullptr; }
  virtual void run(const RunExpertsArgs& args, Workspace workspace, Stream stream) const = 0;
  virtual void gate_up(const ops::GateUpArgs& args, Workspace workspace, Stream stream) const = 0;
  virtual void down(const ops::DownArgs& args, Workspace workspace, Stream stream) const = 0;
  virtual void dense(const ops::DenseArgs& args, Workspace workspace, Stream stream) const = 0;
};

/// output = [addend +] epilogue(input . W^T + bias), accumulated in f32 (reference: double).
enum class LinearEpilogue { kNone, kSigmoid };
struct LinearArgs {
  TensorView input{};   ///< [T, K]
  TensorView addend{};  ///< [T, N] f32 or empty
  TensorView num_tokens{};
  LinearEpilogue epilogue = LinearEpilogue::kNone;
  TensorView output{};  ///< [T, N] f32, bf16 or f16
};
struct LinearStep {
  const char* kernel = "";
  int64_t weight_bytes = 0;     ///< that the kernel reads
  bool on_matrix_unit = false;  ///< bf16 products, else f32
};
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  virtual int64_t packed_bytes() const = 0;
  virtual int64_t workspace_bytes(int64_t max_tokens) const = 0;
  /// What run() would do with so many tokens of the usual type.
  virtual LinearStep step(int64_t /*num_tokens*/) const {
    return {.kernel = "linear", .weight_bytes = packed_bytes()};
  }
  virtual void run(const LinearArgs& args, Workspace workspace, Stream stream) const = 0;
};

/// output = input / rms(input) * scale, row by row.
struct RmsNormArgs {
  TensorView input{};  ///< [T, C]
  TensorView scale{};  ///< [C] f32, bf16 or f16
  float epsilon = 0.0f;
  TensorView num_tokens{};
  TensorView output{};  ///< [T, C] f32, or what latent_type() says
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual BackendKind kind() const = 0;
  /// Why nothing can run here, or empty.
  virtual std::string why_unavailable(int device) const = 0;
  /// Why this layer cannot run, or empty. Assumes the backend is available.
  virtual std::string why_unsupported(const LayerSpec& spec) const = 0;
  /// "x86-64 AVX-512 VNNI, 2 threads", "NVIDIA H200".
  virtual std::string device_name(const LayerOptions& options) const = 0;
  /// What options' threads or device can do at most. Throws where nothing is measured.
  virtual Calibration calibrate(const LayerOptions& options) const {
    static_cast<void>(options);
    throw Error(ErrorCode::kUnsupported, std::string("backend is ") + to_string(kind()) +
                                             "; only cpu and cuda have limits to measure");
  }
  /// As switchyard::read_meter.
  virtual ReadMeter read_meter(int /*num_threads*/) const {
    throw Error(ErrorCode::kUnsupported,
                std::string("backend is ") + to_string(kind()) + "; only cpu has a read meter");
  }
  /// As switchyard::time_calls.
  virtual CallTimes time_calls(int /*device*/, int /*count*/,
                               const std::function<void(int, Stream)>& /*call*/,
                               double /*budget_s*/) const {
    throw Error(ErrorCode::kUnsupported,
                std::string("backend is ") + to_string(kind()) + "; only cuda has graphs to time");
  }

  virtual void route(const RouteRequest& request, const ops::Execution& where) const = 0;
  /// Whether shared experts are packed with the routed ones where they are alike
  /// (layer/fuse_shared.h).
  virtual bool fuses_shared() const { return false; }
  /// Only where fuses_shared().
  virtual void append_shared(const AppendSharedArgs& /*args*/,
                             const ops::Execution& /*where*/) const {
    throw Error(ErrorCode::kInternal, std::string("backend is ") + to_string(kind()) +
                                          "; it does not fuse shared experts");
  }
  virtual int64_t sort_workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                                       int64_t unit_size) const = 0;
  virtual void sort(const ops::SortArgs& args, const ops::Execution& where) const = 0;
  virtual void quantize(const ops::QuantizeArgs& args, const ops::Execution& where) const = 0;
  virtual void activate(const ops::ActivateArgs& args, const ops::Execution& where) const = 0;
  /// On the host: by way of a matrix of sums and one of activations.
  virtual void activate_quantize(const ops::ActivateQuantizeArgs& args,
                                 const ops::Execution& where) const;
  virtual void combine(const ops::CombineArgs& args, const ops::Execution& where) const = 0;
  virtual void rms_norm(const RmsNormArgs& args, const ops::Execution& where) const = 0;

  virtual std::unique_ptr<PackedExperts> pack_experts(const LayerSpec& spec,
                                                      const ExpertSource& source,
                                                      const LayerOptions& options) const = 0;
  virtual std::unique_ptr<PackedLinear> pack_linear(const WeightMatrix& matrix,
                                                    const TensorView& bias,
                                                    const LayerOptions& options) const = 0;
  /// Copies small host tensors (biases, tables) to where the backend computes; the CPU copies too,
  /// because weights are views that die with create. The result frees itself. A device accepts null
  /// data and leaves the memory as it is.
  virtual std::shared_ptr<void> upload(const void* data, int64_t bytes,
                                       const LayerOptions& options) const = 0;
  /// Waits for all work queued on the device, then copies to the host; 0 bytes only wait. A backend
  /// on the host has nothing to do: DeviceMemory serves it.
  virtual void download(void* /*host*/, const void* /*data*/, int64_t /*bytes*/,
                        const LayerOptions& /*options*/) const {}
};

const Backend& reference_backend();
const Backend& cpu_backend();
/// Null when the build has no CUDA.
const Backend* cuda_backend();
/// The backend of a concrete kind. Throws Error{kUnsupported} when this build lacks it.
const Backend& backend(BackendKind kind);

}  // namespace switchyard
