#pragma once
// Decode GEMMs over 4-bit weights in fragment order.

#include "cuda/sm90/decode_args.h"
#include "cuda/stored_rows.h"

namespace switchyard::cuda::sm90 {

/// Blocks of 64 columns in a step of K (one request, 8.5 KB), and steps in a chunk: 512 columns of
/// E4M3, whose 22-bit sums must not get longer.
inline constexpr int kDecodeStepFragments = 4;
inline constexpr int kDecodeFragmentChunkSteps = 2;

struct DecodeFragmentArgs {
  const char* blocks = nullptr;
  int64_t expert_bytes = 0;
  int32_t col_blocks = 0;
  bool deep = false;  ///< scales of a row spread over more than kMaxAddedSteps
};

constexpr DecodeSteps decode_fragment_steps(const FragmentLayout& layout) {
  return {ceil_div(layout.col_blocks, kDecodeStepFragments), kDecodeFragmentChunkSteps};
}

/// Weights in kBf16 order, tokens bf16; weights in kFp8 order, tokens E4M3.
void decode_mxfp4_bf16(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                       Stream stream);
void decode_mxfp4_fp8(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                      Stream stream);

}  // namespace switchyard::cuda::sm90
