#pragma once
// One launcher, and one translation unit, per operand of decode_gemm.

#include <cuda.h>

#include "cuda/sm90/decode_args.h"

namespace switchyard::cuda::sm90 {

void decode_bf16(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream);
void decode_fp8(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream);
void decode_fp8_block128(const CUtensorMap& map, const DecodeArgs& args, int num_ctas,
                         Stream stream);
void decode_int8(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream);

}  // namespace switchyard::cuda::sm90
