#pragma once
// Which kernels take a batch of a layer on Hopper: those of few rows per expert, which stream the
// weights once, or those of many. Whatever is expected to be done first.

#include <algorithm>

#include "core/decode_cost.h"
#include "core/grouped_gemm_cost.h"

namespace switchyard {

struct BatchSize {
  int64_t num_experts = 0, top_k = 0, num_tokens = 0;
};

/// One GEMM of a layer, as both families see it.
struct LayerMatrix {
  DecodeLoop loop = DecodeLoop::kBytes;
  int64_t weight_rows = 0;
  int64_t token_row_bytes = 0;  ///< K, as the matrix unit reads it
  double expert_bytes = 0;      ///< of weights
};

/// Decode tiles of the largest height are slower than the prefill kernels at any size.
inline bool may_decode(const BatchSize& b) {
  return b.num_tokens <= kDecodeMaxTokens &&
         decode_unit_size(b.num_tokens, b.top_k, b.num_experts) < kDecodeMaxUnit;
}

/// Both GEMMs on the decode kernels.
inline double decode_us(const BatchSize& b, const LayerMatrix& gate_up, const LayerMatrix& down,
                        int num_sms) {
  const double experts = expected_distinct_experts(b.num_experts, b.top_k, b.num_tokens);
  const auto us = [&](const LayerMatrix& m) {
    return decode_gemm_us(
        {.experts = experts,
         .rows_per_expert = static_cast<double>(b.num_tokens * b.top_k) / std::max(experts, 1.0),
         .unit_size = decode_unit_size(b.num_tokens, b.top_k, b.num_experts),
         .weight_rows = m.weight_rows,
         .token_row_bytes = m.token_row_bytes,
         .expert_bytes = m.expert_bytes},
        m.loop, num_sms);
  };
  return us(gate_up) + us(down);
}

/// Whether decode kernels take the batch. `prefill_us`: of the others, with their steps around.
inline bool decodes(const BatchSize& b, const LayerMatrix& gate_up, const LayerMatrix& down,
                    double prefill_us, int num_sms) {
  return may_decode(b) && decode_us(b, gate_up, down, num_sms) <= prefill_us;
}

/// More than those of decode: the steps around the prefill GEMMs do not overlap.
constexpr double prefill_steps_us(bool quantizes) { return quantizes ? 28 : 15; }

/// At which the prefill kernels read weights when those are the traffic (bf16 R1 EP8, T = 64).
inline constexpr double kPrefillReadGbps = 4200;
inline double prefill_read_us(double experts, double expert_bytes) {
  return experts * expert_bytes / (kPrefillReadGbps * 1e3);
}
/// One GEMM on the prefill kernels of 8- and 16-bit weights.
inline double grouped_gemm_us(const GroupedGemmConfig& config, const GroupedGemmWork& work,
                              int num_sms) {
  return std::max(
      prefill_read_us(work.experts, static_cast<double>(work.weight_rows * work.row_bytes)),
      grouped_gemm_clocks(config, work, num_sms) / decode_cost::kClock * 1e6);
}

}  // namespace switchyard
