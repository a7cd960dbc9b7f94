#pragma once
// One launcher, and one translation unit, per operand of decode_gemm; and the small kernels around.

#include <cuda.h>

#include "cuda/sm90/decode_args.h"
#include "cuda/sort.h"

namespace switchyard::cuda::sm90 {

void decode_bf16(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream);
void decode_fp8(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream);
void decode_fp8_block128(const CUtensorMap& map, const DecodeArgs& args, int num_ctas,
                         Stream stream);
/// What sort() writes when every token takes expert 0 with its only choice; rounds as well.
void decode_single_expert(const SortJob& job, const RoundJob& round, Stream stream);
void decode_quantize(const RoundJob& job, Stream stream);
void decode_int8(const CUtensorMap& map, const DecodeArgs& args, int num_ctas, Stream stream);

}  // namespace switchyard::cuda::sm90
