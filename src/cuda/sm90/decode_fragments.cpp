#include "cuda/sm90/decode_fragments.h"

#include "core/fragment_convert.h"

namespace switchyard::cuda::sm90 {

DecodeFragmentArgs decode_fragment_args(const PackedMatrices& packed) {
  const WeightRows& w = packed.rows();
  DecodeFragmentArgs args{.blocks = static_cast<const char*>(w.rows.values),
                          .expert_bytes = w.expert_bytes,
                          .col_blocks = w.fragments.col_blocks};
  for (int spread = kMaxAddedSteps + 1; spread < ScaleSpread::kBins; ++spread) {
    args.deep = args.deep || packed.spread().rows[spread] > 0;
  }
  return args;
}

void decode_fragments(FragmentOrder order, const DecodeFragmentArgs& weights,
                      const DecodeArgs& args, int num_ctas, Stream stream) {
  order == FragmentOrder::kFp8 ? decode_mxfp4_fp8(weights, args, num_ctas, stream)
                               : decode_mxfp4_bf16(weights, args, num_ctas, stream);
}

}  // namespace switchyard::cuda::sm90
