#pragma once
// Decode GEMMs over 4-bit and MXFP8 weights in fragment order.

#include "cuda/pack_weights.h"
#include "cuda/sm90/decode_args.h"

namespace switchyard::cuda::sm90 {

/// Blocks of 64 columns in a chunk.
inline constexpr int kDecodeChunkFragments = 8;
struct DecodeFragmentArgs {
  const char* blocks = nullptr;
  int64_t expert_bytes = 0;
  int32_t col_blocks = 0;
  bool deep = false;  ///< scales of a row spread over more than kMaxAddedSteps
  Format format = Format::kMxfp4;
  int32_t scale_cols = 32;  ///< columns of a block that share a scale
  bool factors = false;     ///< kInt4: int4_factor() instead of bf16 scales
};

/// Steps of step_blocks; the chunks are the same whatever the steps.
constexpr DecodeSteps decode_fragment_steps(int32_t col_blocks, int32_t step_blocks) {
  return {ceil_div(col_blocks, step_blocks), kDecodeChunkFragments / step_blocks};
}

DecodeFragmentArgs decode_fragment_args(const PackedMatrices& packed);

/// Weights in kBf16 order meet bf16 tokens, weights in kFp8 order E4M3, in kInt8 order INT8.
void decode_fragments(FragmentOrder order, const DecodeFragmentArgs& weights,
                      const DecodeArgs& args, int num_ctas, Stream stream);

// One per translation unit.
void decode_mxfp4_bf16(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                       Stream stream);
void decode_mxfp4_fp8(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                      Stream stream);
void decode_mxfp4_fp8_block128(const DecodeFragmentArgs& weights, const DecodeArgs& args,
                               int num_ctas, Stream stream);
void decode_mxfp8_bf16(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                       Stream stream);
void decode_nvfp4_fp8(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                      Stream stream);
void decode_nvfp4_bf16(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                       Stream stream);
void decode_int4_g32(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                     Stream stream);
void decode_int4_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                     Stream stream);
void decode_int4_zeros_g32(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                           Stream stream);
void decode_int4_zeros_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                           Stream stream);
void decode_int4_fp8_g32(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                         Stream stream);
void decode_int4_fp8_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                         Stream stream);
void decode_int4_zeros_fp8_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args,
                               int num_ctas, Stream stream);
void decode_int4_int8_g32(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                          Stream stream);
void decode_int4_int8_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args, int num_ctas,
                          Stream stream);
void decode_int4_zeros_int8_g64(const DecodeFragmentArgs& weights, const DecodeArgs& args,
                                int num_ctas, Stream stream);

}  // namespace switchyard::cuda::sm90
