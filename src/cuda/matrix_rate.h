#pragma once
// Arithmetic at its best: loops of multiply-adds on operands that never move.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace switchyard::cuda {

/// One launch on every SM; returns the FLOPs that it does.
double launch_f32_rate(float* sink, int num_sms, cudaStream_t stream);

namespace sm90 {
enum class MatrixOperands { kBf16, kE4m3, kS8 };
/// wgmma from shared memory, 2 x 64 x 256 x 128 bytes of K at a time, on random numbers.
double launch_matrix_rate(MatrixOperands operands, float* sink, int num_sms, cudaStream_t stream);
}  // namespace sm90

}  // namespace switchyard::cuda
