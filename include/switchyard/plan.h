#pragma once
// What forward will do for a token count, as printable values.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/export.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// How `backend` stores the layer's activations: what the spec names, or what kAuto means there.
SWITCHYARD_EXPORT ActivationFormat activations_on(BackendKind backend, const LayerSpec& spec);

/// One step of a plan.
struct PlanStep {
  std::string step{};    ///< route, sort, quantize, gate_up, down, combine, shared, ...
  std::string kernel{};  ///< name of what runs
  std::string why{};     ///< why it was chosen, with the values that decided
  double bytes = 0;      ///< expected traffic, distinct expert bytes once
  double flops = 0;      ///< 2 per multiply-add
  double predicted_us = 0;
};

/// What forward will do for `num_tokens` tokens on one backend.
struct SWITCHYARD_EXPORT Plan {
  BackendKind backend = BackendKind::kCpu;
  std::string device{};  ///< "x86-64 AVX-512 VNNI, 2 threads"
  int64_t num_tokens = 0;
  int64_t workspace_bytes = 0;
  double expected_distinct_experts = 0;
  std::vector<PlanStep> steps{};
  std::vector<std::string>
      rejected{};  ///< "cuda: no device", one line per backend or kernel not taken

  double predicted_us() const;
  /// Human-readable table: one line per step, then what was rejected and why.
  std::string explain() const;
};

/// What this machine can do; measured once and passed in, never guessed in forward.
struct MachineLimits {
  BackendKind backend = BackendKind::kCpu;
  std::string device{};
  double read_gbps = 0;    ///< streaming read over a footprint beyond the caches
  double copy_gbps = 0;    ///< bytes read + written
  double f32_gflops = 0;   ///< fp32 FMA
  double bf16_gflops = 0;  ///< 0 = no such instruction
  double int8_gops = 0;    ///< 8-bit dot product, 2 per multiply-add
  double fp8_gflops = 0;
  int num_threads = 0;
};

/// Measures this machine, its first GPU for cuda (about a second). num_threads 0 = all.
SWITCHYARD_EXPORT MachineLimits measure_limits(BackendKind backend = BackendKind::kCpu,
                                               int num_threads = 0);
/// Typical H200 figures (docs/decisions.md has the source), for predictions on machines that have
/// none.
SWITCHYARD_EXPORT MachineLimits h200_limits();

}  // namespace switchyard
