#include "cuda/sm90/decode_gemm.h"

#include "cuda/sm90/decode_launchers.h"
#include "cuda/sm90/tensor_map.h"

namespace switchyard::cuda::sm90 {

CUtensorMap decode_weight_map(const WeightRows& weights, int64_t num_experts) {
  const int element = element_bits(weights.rows.format) / 8;
  return tensor_map(TensorMap3d{.slab = {.data = weights.rows.values,
                                         .rows = weights.num_rows,
                                         .cols = weights.num_cols,
                                         .row_bytes = weights.rows.row_bytes,
                                         .element_bytes = element,
                                         .box_rows = kDecodeRows,
                                         .box_cols = 128 / element},
                                .slabs = num_experts,
                                .slab_bytes = weights.expert_bytes});
}

void decode_gemm(DecodeOperand operand, const CUtensorMap& map, const DecodeArgs& args,
                 int num_ctas, Stream stream) {
  switch (operand) {
    case DecodeOperand::kBf16: return decode_bf16(map, args, num_ctas, stream);
    case DecodeOperand::kFp8: return decode_fp8(map, args, num_ctas, stream);
    case DecodeOperand::kFp8Block128: return decode_fp8_block128(map, args, num_ctas, stream);
    case DecodeOperand::kInt8: return decode_int8(map, args, num_ctas, stream);
  }
}

}  // namespace switchyard::cuda::sm90
