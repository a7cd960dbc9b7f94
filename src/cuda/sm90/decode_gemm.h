#pragma once
// Decode GEMMs over row-major weights: bf16, FP8 with scales per row or per 128x128, INT8.

#include <cuda.h>

#include "cuda/sm90/decode_args.h"
#include "cuda/stored_rows.h"

namespace switchyard::cuda::sm90 {

enum class DecodeOperand { kBf16, kFp8, kFp8Block128, kInt8 };

/// Boxes of the weights of all experts, for one layer's lifetime.
CUtensorMap decode_weight_map(const WeightRows& weights, int64_t num_experts);

/// A step of K is 256 bytes of a row: 16 KB a request pair, and rings of several slots where K is
/// short. A chunk is two steps.
inline constexpr int kDecodeStepRowBytes = 256;
inline constexpr int kDecodeChunkSteps = 2;
constexpr DecodeSteps decode_steps(int64_t row_bytes) {
  return {static_cast<int32_t>(ceil_div<int64_t>(row_bytes, kDecodeStepRowBytes)),
          kDecodeChunkSteps};
}

/// `args.steps` is of decode_steps; num_ctas: at most the GPU's SMs.
void decode_gemm(DecodeOperand operand, const CUtensorMap& map, const DecodeArgs& args,
                 int num_ctas, Stream stream);

}  // namespace switchyard::cuda::sm90
