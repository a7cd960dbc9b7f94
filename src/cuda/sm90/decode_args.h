#pragma once
// What one decode GEMM computes: rows of sorted pairs against their experts' weights. The same for
// every format; what differs is the Operand of decode_kernel.cuh.

#include <cstdint>

#include "core/decode_schedule.h"
#include "cuda/sm90/round_rows.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda::sm90 {

/// The largest magnitudes of f32 rows that whoever reads them rounds to E4M3 or INT8.
struct RowMaxima {
  uint32_t* bits =
      nullptr;         ///< [rows][groups] of |value|; 0 before the first value; or no rounding
  int32_t groups = 1;  ///< of 128 columns; 1: the whole row
  Format format = Format::kFp8E4m3;
};

/// The sum of a single token's rows in order of its choices.
struct RowSum {
  void* output = nullptr;  ///< [columns], or null: no sum
  DataType output_type = DataType::kF32;
  const float* addend = nullptr;  ///< [columns], comes first; or null
};

struct DecodeArgs {
  // Sorted rows (ops::SortArgs); a block of unit_size of them is one tile.
  const int32_t* sorted_ids = nullptr;
  const int32_t* sorted_expert_ids = nullptr;
  const int32_t* num_valid_ids = nullptr;
  const float* sorted_weights = nullptr;  ///< multiply the rows, or null
  int32_t unit_size = 8;                  ///< 8, 16, 32 or 64
  int32_t top_k = 1;
  int32_t num_tokens = 0;   ///< rows of the sentinel have this token
  int32_t expert_rows = 0;  ///< an expert has at most; 0: unknown
  /// Block k is the k-th choice of the only token, which is known before the lists are there.
  bool single_token = false;
  /// The lists were ready before the previous kernel in the stream let this one start, so weights
  /// may stream while that one still runs.
  bool lists_ready = false;

  // Rows of the input: K elements, 16-byte aligned, of the operand's element type.
  const void* tokens = nullptr;
  RowMaxima token_maxima{};             ///< f32 tokens, rounded by the loader; units of 8
  int64_t token_row_bytes = 0;          ///< from row to row
  int32_t token_bytes = 0;              ///< of K elements: zeros from there
  bool tokens_per_pair = false;         ///< row = token * top_k + slot, else the token
  const float* token_scales = nullptr;  ///< [rows][token_scale_groups], or null: 1
  int32_t token_scale_groups = 0;       ///< 0: one for all rows; 1: per row; else per 128 columns

  // Weights beside the Operand's own.
  const float* row_scales = nullptr;  ///< [E][num_rows][row_scale_groups], or null: 1
  int32_t row_scale_groups = 1;       ///< 1: per row, else per 128 columns (the same in 64 rows,
                                      ///< gate and up apart)
  const float* bias = nullptr;        ///< [E][num_rows] or null
  int32_t num_rows = 0;

  // (sum * scales [* weight before bias] + bias), activated, [* weight]
  bool activate = false;
  bool weight_before_bias = false;
  ActivationSpec activation{};
  void* output = nullptr;  ///< [pairs][output_columns]
  DataType output_type = DataType::kF32;
  int32_t output_columns = 0;

  // The output (f32 then) as the next GEMM's tokens, which rounds them while it reads.
  RowMaxima maxima{};
  const float* rounded_channels = nullptr;  ///< [E][output_columns], multiply first, or null

  DecodeSteps steps{};
  uint32_t* partials = nullptr;  ///< decode_partial_bytes
  uint32_t* counters = nullptr;  ///< one per warpgroup; 0 before, 0 after
  RowSum sum{};                  ///< in the place of the output
};

}  // namespace switchyard::cuda::sm90
