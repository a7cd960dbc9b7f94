#include "cuda/sm90/decode_fragments.h"

#include "core/fragment_convert.h"

namespace switchyard::cuda::sm90 {

DecodeFragmentArgs decode_fragment_args(const PackedMatrices& packed) {
  const WeightRows& w = packed.rows();
  return {.blocks = static_cast<const char*>(w.rows.values),
          .expert_bytes = w.expert_bytes,
          .col_blocks = w.fragments.col_blocks,
          .deep = packed.spread().deeper_than(kMaxAddedSteps),
          .format = w.rows.format,
          .scale_cols = w.fragments.scale_cols,
          .factors = w.fragments.scale_bytes == 4};
}

namespace {

using Launch = void (*)(const DecodeFragmentArgs&, const DecodeArgs&, int, Stream);

Launch int4_launch(FragmentOrder order, bool factors, bool short_groups) {
  switch (order) {
    case FragmentOrder::kFp8:
      return factors        ? decode_int4_zeros_fp8_g64
             : short_groups ? decode_int4_fp8_g32
                            : decode_int4_fp8_g64;
    case FragmentOrder::kInt8:
      return factors        ? decode_int4_zeros_int8_g64
             : short_groups ? decode_int4_int8_g32
                            : decode_int4_int8_g64;
    default: break;
  }
  if (factors) return short_groups ? decode_int4_zeros_g32 : decode_int4_zeros_g64;
  return short_groups ? decode_int4_g32 : decode_int4_g64;
}

Launch launch_of(FragmentOrder order, const DecodeFragmentArgs& weights, bool token_scales) {
  switch (weights.format) {
    case Format::kInt4: return int4_launch(order, weights.factors, weights.scale_cols == 32);
    case Format::kNvfp4: return order == FragmentOrder::kFp8 ? decode_nvfp4_fp8 : decode_nvfp4_bf16;
    case Format::kMxfp8: return decode_mxfp8_bf16;
    default: break;
  }
  if (order == FragmentOrder::kBf16) return decode_mxfp4_bf16;
  return token_scales ? decode_mxfp4_fp8_block128 : decode_mxfp4_fp8;
}

}  // namespace

void decode_fragments(FragmentOrder order, const DecodeFragmentArgs& weights,
                      const DecodeArgs& args, int num_ctas, Stream stream) {
  launch_of(order, weights, args.token_scale_groups > 1)(weights, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
