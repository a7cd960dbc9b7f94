#pragma once
// The generic grouped GEMM: every format pair and shape on any GPU from sm_80, f32 accumulation in
// column order, one accumulator per output. A token's result does not depend on its batch.

#include "cuda/stored_rows.h"
#include "cuda/token_count.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda {

/// Rows of one thread block; sorted rows come in units that these divide best.
inline constexpr int kGemmRowsDecode = 16;
inline constexpr int kGemmRows = 64;
/// Tokens of one pass of the dense form.
inline constexpr int kDenseTokens = kGemmRows;

/// Which rows meet which expert.
struct GemmRowMap {
  /// Sorted rows (ops::SortArgs), or null: row r is token r, and meets every expert [0,
  /// num_experts).
  const int32_t* sorted_ids = nullptr;
  const int32_t* sorted_expert_ids = nullptr;
  const int32_t* num_valid_ids = nullptr;
  const float* sorted_weights = nullptr;  ///< or null: 1
  int32_t unit_size = 0;
  int32_t num_blocks = 0;  ///< blocks that the launch must cover
  int32_t top_k = 1;
  TokenCount tokens{};
  int32_t num_experts = 1;
  const float* token_weights = nullptr;  ///< unsorted rows: [T] or null: 1
  /// Unsorted rows: [T][alpha_stride], 0 = this token does not meet this expert.
  const float* alpha = nullptr;
  int64_t alpha_stride = 0;
  /// With alpha: [T], 0 = leave this token alone, its output too. Null: all are wanted.
  const int32_t* wanted = nullptr;
};

struct GemmJob {
  GemmRowMap map{};
  StoredRows input{};
  /// Input row of a sorted row is its pair (token * top_k + slot), else its token. Unsorted:
  /// expert * tokens + token, else the token.
  bool input_per_pair = false;
  WeightRows weights{};
  const ActivationSpec* activation = nullptr;  ///< null: none
  bool sigmoid = false;
  /// Routing weight multiplies gate_up's input (Llama-4); dense: not the sum's terms then.
  bool weight_before_bias = false;
  bool sum_over_experts = false;  ///< dense: output[t] = sum over e of alpha[t, e] * product
  const float* addend = nullptr;  ///< [rows][columns] or null
  void* output = nullptr;         ///< row as input_per_pair = true would count it
  DataType output_type = DataType::kF32;
};
void grouped_gemm(const GemmJob& job, Stream stream);

/// Rows per block for about this many rows of an expert.
constexpr int gemm_rows(double rows_per_expert) {
  return rows_per_expert > 24 ? kGemmRows : kGemmRowsDecode;
}

}  // namespace switchyard::cuda
