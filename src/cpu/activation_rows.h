#pragma once
// Rows of activations as the kernels read them: f32, or int8 per 32 columns (kernels.h). Explicit
// activation formats that no kernel multiplies are rounded through that format and go on as f32.

#include <cstdint>

#include "cpu/kernels.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard::cpu {

/// `words`: the integers stand there as words too, where the weights are int8.
RowLayout row_layout(const PanelLayout& weights, RowValues values, bool words = false);
/// 16-bit values with the two of each pair swapped; an even number of them. In place if need be.
void swap_pairs(const uint8_t* from, int64_t count, uint8_t* to);

/// Whether rows of this format are rounded through it (rather than kept, or int8 per 32).
constexpr bool needs_rounding(ActivationFormat format) {
  return format != ActivationFormat::kAuto && format != ActivationFormat::kNone &&
         format != ActivationFormat::kInt8Block32;
}
/// Rounds `cols` values of a row to `format` and back. needs_rounding(format) holds.
void round_row(ActivationFormat format, int64_t cols, float* row);

/// One row after another: source row -> packed row.
struct RowSource {
  TensorView input{};  ///< [M, C] f32, bf16 or f16
  const int32_t* row_index =
      nullptr;  ///< source row of each packed row, times divisor; null: itself
  int32_t divisor = 1;
  const float* weights = nullptr;         ///< multiply whole rows before rounding; null: 1
  const int32_t* weight_index = nullptr;  ///< of each packed row in weights; null: itself
};

/// Packs row `row` of `source`: converts, multiplies by channel_scale [C] when not null, rounds,
/// quantises. `buffer` holds the padded columns as f32.
void prepare_row(const Kernels& kernels, const RowSource& source, int64_t row,
                 const float* channel_scale, ActivationFormat format, const RowLayout& layout,
                 float* buffer, uint8_t* out);
/// The part of prepare_row that follows the conversion; `padded` has zeros behind its `cols`
/// columns.
void finish_row(const Kernels& kernels, const float* channel_scale, ActivationFormat format,
                int64_t cols, const RowLayout& layout, float* padded, uint8_t* out);

}  // namespace switchyard::cpu
