#pragma once
// The prefill GEMM of Hopper: many sorted rows per expert times 16- or 8-bit weights. Rows on
// wgmma's M, weights on its N; both stages of a layer are this one kernel with different ends.

#include <cuda.h>

#include <vector>

#include "core/grouped_gemm_config.h"
#include "cuda/stored_rows.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::cuda::sm90 {

/// What multiplies products of the matrix unit, and where: it decides how often f32 sums are taken
/// out of it (docs/numerics.md).
enum class Scaling {
  kNone,   ///< bf16
  kOuter,  ///< a scale per row and one per weight row, after the last product
  kBlock,  ///< scales per 128 columns of K of rows, weights or both
};

/// The sorted rows (ops::SortArgs).
struct SortedRows {
  const int32_t* ids = nullptr;
  const int32_t* experts = nullptr;
  const int32_t* num_valid = nullptr;
  const float* weights = nullptr;  ///< or null: 1
  int32_t num_blocks = 0;          ///< that the arrays hold
  int32_t block_rows = 0;          ///< the sort's unit_size: a multiple of a tile's height
  int32_t top_k = 1;
};

/// Where row r of a tile reads its input.
enum class RowSource {
  kSorted,  ///< input row = sorted row: by the copy engine
  kToken,   ///< gathered
  kPair,    ///< gathered; token * top_k + slot
};

struct GroupedGemmJob {
  SortedRows sorted{};
  uint32_t* tile_counter = nullptr;  ///< 0 at the start, anything afterwards
  RowSource source = RowSource::kSorted;
  StoredRows input{};  ///< scales: per row, per tensor (num_groups 0) or per 128 columns
  int64_t num_input_rows = 0;
  WeightRows weights{};
  int64_t num_experts = 0;
  /// Scales of 128 x 128 blocks as block_scale_table() made them; null: weights.rows.scales per
  /// row.
  const float* block_scales = nullptr;
  /// Weights in fragment order: some scale is more than kMaxAddedSteps below its row's largest.
  bool deep_scales = true;
  const ActivationSpec* activation = nullptr;  ///< null: none
  bool weight_before_bias = false;             ///< routing weight multiplies the input (Llama-4)
  bool output_per_pair = false;                ///< output row: the pair; else the sorted row
  void* output = nullptr;                      ///< bf16 [rows][columns], 16-byte aligned rows
  int64_t output_stride = 0;                   ///< elements
  /// Where rounds_output() and the config allow: the output is E4M3, these its scales per 128
  /// columns. Else null.
  float* output_scales = nullptr;
};
/// Whether configs that hold_gated_scale() can round their output to E4M3 with a scale per 128
/// columns, to the bits of cuda::quantize of the bf16 output.
bool rounds_output(Scaling scaling, const ActivationSpec& activation, int64_t output_columns);

/// Enqueues; weight maps come ready made because they never change.
void grouped_gemm(const GroupedGemmJob& job, const GroupedGemmConfig& config,
                  const CUtensorMap& weight_map, int num_sms, Stream stream);

/// The map that grouped_gemm() wants for these weights under this config.
CUtensorMap weight_map(const WeightRows& weights, int64_t num_experts,
                       const GroupedGemmConfig& config);

/// How the GEMM of these operands scales.
Scaling scaling_of(const StoredRows& input, const WeightRows& weights);

/// Configs compiled in for weights of this format, best for many rows first.
std::vector<GroupedGemmConfig> configs_of(Format weights, Scaling scaling);

/// table[expert][tile of 128 weight rows][group of 128 columns][2]: the scale of its even and its
/// odd rows (gate and up alternate). `mixed` becomes 1 when the rows of a tile differ otherwise.
constexpr int64_t block_scale_count(const WeightRows& w, int64_t num_experts) {
  return num_experts * ((w.num_rows + 127) / 128) * w.rows.num_groups * 2;
}
void block_scale_table(const WeightRows& weights, int64_t num_experts, float* table, int32_t* mixed,
                       Stream stream);

}  // namespace switchyard::cuda::sm90
