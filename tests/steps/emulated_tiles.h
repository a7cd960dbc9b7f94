#pragma once

#include "cpu/kernels.h"

namespace switchyard::cpu {

/// Kernels::multiply of the AMX level over emulated tile registers; needs the avx512_bf16 level.
void multiply_with_emulated_tiles(const MultiplyJob& job);

}  // namespace switchyard::cpu
