#pragma once
// How one stored matrix is to be read, decided from dtypes and shapes; config.json only breaks ties
// and must not contradict.

#include <span>
#include <string>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/model_config.h"

namespace switchyard {

enum class Packing {
  kPlain,  ///< [N, K] values, or nibbles along K
  kGptq,   ///< qweight [K / 8, N], scales and zeros [groups, N]
  kAwq,    ///< qweight [K, N / 8] in the order 0 2 4 6 1 3 5 7
};

struct MatrixFormat {
  Format format = Format::kBf16;
  Packing packing = Packing::kPlain;
  int64_t rows = 0;  ///< of the stored matrix: 2I for a fused gate_up
  int64_t cols = 0;
  bool stacked = false;         ///< the tensors have a leading [E]
  bool k_major = false;         ///< stored as [K, N]
  bool per_half_scale = false;  ///< one scale for gate, one for up
  bool zero_points_minus_one = false;
  int64_t scale_rows = 0;  ///< extents of the scales of one matrix; 0: no scales
  int64_t scale_cols = 0;
  ScaleBlock block{};

  /// "fp8_e4m3, scales 128x128 f32"
  std::string description{};
};

/// What is known about a matrix before its tensors are looked at; 0 = unknown.
struct MatrixExpectation {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stack = 0;   ///< leading extent of fused tensors
  int64_t halves = 1;  ///< 2: gate and up in one matrix
  bool k_major = false;
};

/// Parts that the values need and that are absent, and parts that nothing would read.
struct PartReport {
  std::vector<std::string> missing{};
  std::vector<std::string> unused{};
};
PartReport check_parts(const StoredMatrix& stored);

/// Throws Error{kInvalidFile} naming the tensor, its dtype, its shape and the rule. Expects that
/// check_parts had nothing to report.
MatrixFormat detect_format(const StoredMatrix& stored, const MatrixExpectation& expected,
                           const QuantizationConfig& config);

/// Gives matrices of one layer the same scale block where blocks that cover a whole extent allow
/// it. Throws Error{kUnsupported} when formats or blocks differ.
void unify_formats(std::span<MatrixFormat* const> formats, const std::string& layer);

/// "tensor 'x' BF16 [4, 8]"
std::string describe(const CheckpointTensor& tensor);

}  // namespace switchyard
