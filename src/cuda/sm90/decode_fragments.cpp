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

void decode_fragments(FragmentOrder order, const DecodeFragmentArgs& weights,
                      const DecodeArgs& args, int num_ctas, Stream stream) {
  const auto launch = [&](auto decode) { decode(weights, args, num_ctas, stream); };
  if (order == FragmentOrder::kFp8) {
    return launch(args.token_scale_groups > 1 ? decode_mxfp4_fp8_block128 : decode_mxfp4_fp8);
  }
  switch (weights.format) {
    case Format::kInt4: {
      const bool short_groups = weights.scale_cols == 32;
      if (weights.factors)
        return launch(short_groups ? decode_int4_zeros_g32 : decode_int4_zeros_g64);
      return launch(short_groups ? decode_int4_g32 : decode_int4_g64);
    }
    case Format::kNvfp4: return launch(decode_nvfp4_bf16);
    case Format::kMxfp8: return launch(decode_mxfp8_bf16);
    default: return launch(decode_mxfp4_bf16);
  }
}

}  // namespace switchyard::cuda::sm90
