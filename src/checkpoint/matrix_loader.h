#pragma once
// A stored matrix as a WeightMatrix: views into the mapped file, repacked only where the packing is
// nobody's native one. Scales are checked here, when they are first read.

#include "checkpoint/arena.h"
#include "checkpoint/matrix_format.h"
#include "switchyard/weights.h"

namespace switchyard {

/// Gate and up of a fused matrix.
enum class Half : int64_t { kGate = 0, kUp = 1 };

/// The matrix of expert `expert` (-1: not an expert's). Throws Error{kInvalidFile} naming tensor,
/// expert and position for a scale that is NaN or a group that does not exist.
WeightMatrix load_matrix(const StoredMatrix& stored, const MatrixFormat& format, int64_t expert,
                         Arena& arena);

/// Rows of one half; `stored` and `format` are those `whole` was loaded from.
WeightMatrix take_half(const WeightMatrix& whole, const StoredMatrix& stored,
                       const MatrixFormat& format, int64_t expert, Half half, GateUpOrder order);

/// The bias of the matrix, [rows]; empty when there is none.
TensorView load_bias(const StoredMatrix& stored, const MatrixFormat& format, int64_t expert);
TensorView take_half(const TensorView& bias, Half half, GateUpOrder order);

/// What of a tensor belongs to one expert: a slice of a stacked one, else all of it.
TensorView expert_slice(const CheckpointTensor& tensor, const MatrixFormat& format, int64_t expert);

}  // namespace switchyard
