#pragma once
// Bytes and FLOPs of one forward, and the time that a machine's limits allow for them.

#include <cstdint>

#include "switchyard/layer_spec.h"
#include "switchyard/plan.h"
#include "switchyard/weights.h"

namespace switchyard::cli {

/// Expected number of distinct experts for tokens that choose uniformly: E (1 - (1 - K/E)^T).
double expected_distinct_experts(const LayerSpec& spec, int64_t num_tokens);

/// FLOPs of routed and shared experts and latent projections; 2 per multiply-add.
double expert_flops(const LayerSpec& spec, int64_t num_tokens);
/// FLOPs of the router's projection.
double router_flops(const LayerSpec& spec, int64_t num_tokens);

/// Stored bytes of one expert's matrices: values, scales, biases.
int64_t stored_bytes(const ExpertWeights& expert);
/// Stored bytes that every token's forward reads beside the routed experts, without the router.
int64_t stored_bytes_of_shared(const Weights& weights);

/// Fastest arithmetic of the machine that these weights can use, in GFLOP/s, and its name.
struct Peak {
  double gflops = 0;
  const char* name = "";
};
Peak arithmetic_peak(const LayerSpec& spec, const MachineLimits& limits);

/// max(bytes / read bandwidth, FLOPs / peak).
struct Floor {
  double us = 0;
  bool memory_bound = true;
};
Floor time_floor(double bytes, double flops, const LayerSpec& spec, const MachineLimits& limits);

/// How one expert's intermediate size is cut over `ranks` tensor-parallel ranks.
struct TensorParallelSplit {
  int64_t granularity = 1;   ///< I must be cut at multiples of this (scale blocks, nibbles)
  int64_t shard = 0;         ///< columns of the largest rank as cut: ceil(I / ranks)
  int64_t padded_shard = 0;  ///< the same, rounded up to whole blocks
  bool on_block_boundaries() const { return shard == padded_shard; }
};
TensorParallelSplit tensor_parallel_split(const LayerSpec& spec, int64_t ranks);

}  // namespace switchyard::cli
