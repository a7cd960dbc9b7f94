#pragma once
// The public object and its one verb.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "switchyard/error.h"
#include "switchyard/export.h"
#include "switchyard/layer_spec.h"
#include "switchyard/plan.h"
#include "switchyard/tensor.h"
#include "switchyard/weights.h"

namespace switchyard {

/// Lends the host application's threads. run() calls fn(context, i) once for each i in [0,
/// num_threads), on different threads or one after the other, and returns when all are done.
/// Results never depend on which.
class SWITCHYARD_EXPORT Executor {
 public:
  virtual ~Executor() = default;
  virtual int num_threads() const noexcept = 0;
  virtual void run(void (*fn)(void* context, int thread), void* context) = 0;
};

/// Choices that are not facts of the layer. None of them changes a bit of the result on one
/// backend.
struct LayerOptions {
  BackendKind backend = BackendKind::kAuto;
  int device = 0;                ///< CUDA ordinal
  int num_threads = 0;           ///< CPU: 0 = all cores this process may use
  Executor* executor = nullptr;  ///< CPU: used instead of an own pool; must outlive the layer
  std::string
      cpu_isa{};  ///< CPU: avx2[_vnni], avx512[_vnni|_bf16]; empty = best (or SWITCHYARD_CPU_ISA)
  /// CUDA: only the portable kernels, which know every shape and format: a second opinion.
  bool generic_kernels = false;
  /// Called after each packed expert from the thread that called create.
  std::function<void(int64_t done, int64_t total)> on_progress{};
};

/// Arguments of one forward. T = num_tokens; views are contiguous and must not overlap the output.
struct ForwardArgs {
  TensorView hidden_states{};  ///< [T, H] f32, bf16 or f16
  TensorView output{};         ///< [T, H], same type; written completely
  /// Routing input, in order of precedence: ids and weights, else logits, else the layer's own
  /// router.
  TensorView topk_ids{};      ///< [T, K] i32; -1 and >= E are skipped
  TensorView topk_weights{};  ///< [T, K] f32
  /// [T, E] f32, bf16 or f16, without fused shared experts; the layer adds logit_bias, if it has
  /// one.
  TensorView router_logits{};
  TensorView input_ids{};  ///< [T] i32 or i64, hash layers only
  /// Optional copies of the routing that was used; not together with topk_ids.
  TensorView topk_ids_out{};      ///< [T, K] i32
  TensorView topk_weights_out{};  ///< [T, K] f32
  /// Optional [1] i32 where the backend computes: only the first num_tokens[0] rows are computed;
  /// the other rows of output are left as they are.
  TensorView num_tokens{};
};

/// One MoE block with packed weights: router, routed experts, shared experts. Movable; forward is
/// const, neither allocates nor locks (the reference's router alone allocates), and may run from
/// several threads with different workspaces.
class SWITCHYARD_EXPORT Layer {
 public:
  /// Validates, packs expert by expert. Throws Error; nothing half-made is left behind.
  static Layer create(const LayerSpec& spec, const Weights& weights,
                      const LayerOptions& options = {});

  Layer(Layer&&) noexcept;
  Layer& operator=(Layer&&) noexcept;
  ~Layer();

  const LayerSpec& spec() const noexcept;
  BackendKind backend() const noexcept;
  /// Bytes of the packed weights.
  int64_t packed_bytes() const noexcept;
  /// Scratch that forward needs for up to max_tokens tokens.
  int64_t workspace_bytes(int64_t max_tokens) const;
  /// What forward will do; `limits` turn bytes and FLOPs into predicted times (0 when absent).
  Plan plan(int64_t num_tokens, const MachineLimits& limits = {}) const;
  void forward(const ForwardArgs& args, Workspace workspace, Stream stream = {}) const;

 private:
  struct Impl;
  explicit Layer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Why the backend cannot run this layer here, or an empty string.
SWITCHYARD_EXPORT std::string why_unsupported(const LayerSpec& spec, BackendKind backend,
                                              int device = 0);

}  // namespace switchyard
