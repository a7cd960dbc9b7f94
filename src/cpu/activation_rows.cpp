#include "cpu/activation_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/activation_format.h"
#include "core/block_quantize.h"
#include "core/math.h"

namespace switchyard::cpu {
namespace {

float decode(Format format, uint8_t code) {
  switch (format) {
    case Format::kInt8: return static_cast<float>(static_cast<int8_t>(code));
    case Format::kMxfp4: return fp4_e2m1_to_f32(code);
    default: return fp8_e4m3_to_f32(code);
  }
}

}  // namespace

RowLayout row_layout(const PanelLayout& weights, RowValues values, bool words) {
  RowLayout layout{.values = values, .num_blocks = weights.num_blocks};
  const int64_t cols = int64_t{weights.num_blocks} * kBlockCols;
  if (values != RowValues::kInt8) {
    layout.row_bytes = cols * (values == RowValues::kBf16 ? 2 : 4);
    return layout;
  }
  layout.half_blocks = weights.scale_cols < kBlockCols;
  // What the unsigned codes exceed the signed values by: taken off once per block of activations.
  layout.offset = weights.zero_points                    ? 1
                  : weights.values == PanelValues::kInt8 ? kInt8Offset
                  : weights.values == PanelValues::kInt4 ? -8
                                                         : -12;
  layout.scales_offset = cols;
  layout.corrections_offset = layout.scales_offset + int64_t{weights.num_blocks} * 4;
  const int64_t corrections = int64_t{weights.num_blocks} * (layout.half_blocks ? 2 : 1);
  layout.row_bytes = align_up<int64_t>(layout.corrections_offset + corrections * 4, kLineBytes);
  if (words && weights.values == PanelValues::kInt8) {
    layout.words_offset = layout.row_bytes;
    layout.row_bytes += cols * 2;
  }
  return layout;
}

void swap_pairs(const uint8_t* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count / 2; ++i) {
    uint32_t pair;
    std::memcpy(&pair, from + i * 4, sizeof(pair));
    pair = std::rotl(pair, 16);
    std::memcpy(to + i * 4, &pair, sizeof(pair));
  }
}

void round_row(ActivationFormat format, int64_t cols, float* row) {
  const ActivationStorage storage = activation_storage(format);
  const BlockQuantization how{.format = storage.format};
  const int64_t block = storage.scale_block.cols == 0 ? cols : storage.scale_block.cols;
  for (int64_t begin = 0; begin < cols; begin += block) {
    const int64_t end = std::min(begin + block, cols);
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i) {
      largest = std::max(largest, f32_bits(quantizer_input(row[i], 1.0f)) & 0x7fffffffu);
    }
    const BlockScale scale = block_scale(how, largest);
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t code = quantize_value(how.format, quantizer_input(row[i], 1.0f), scale);
      row[i] = decode(how.format, code) * scale.stored;
    }
  }
}

void finish_row(const Kernels& kernels, const float* channel_scale, ActivationFormat format,
                int64_t cols, const RowLayout& layout, float* padded, uint8_t* out) {
  if (channel_scale != nullptr) {
    for (int64_t i = 0; i < cols; ++i) padded[i] *= channel_scale[i];
  }
  if (needs_rounding(format)) round_row(format, cols, padded);
  if (layout.integer()) {
    kernels.quantize_blocks(padded, layout, 0, layout.num_blocks, out);
  } else if (reinterpret_cast<uint8_t*>(padded) != out) {
    std::memcpy(out, padded, static_cast<size_t>(layout.row_bytes));
  }
}

void prepare_row(const Kernels& kernels, const RowSource& source, int64_t row,
                 const float* channel_scale, ActivationFormat format, const RowLayout& layout,
                 float* buffer, uint8_t* out) {
  const int64_t from = source.row_index == nullptr ? row : source.row_index[row] / source.divisor;
  const int64_t cols = source.input.extent(1);
  const auto* input = source.input.as<const uint8_t>() +
                      from * source.input.stride(0) * element_bytes(source.input.type);
  if (layout.values == RowValues::kBf16) {
    const int64_t padded_cols = int64_t{layout.num_blocks} * kBlockCols;
    std::memcpy(out, input, static_cast<size_t>(cols) * 2);
    std::memset(out + cols * 2, 0, static_cast<size_t>(padded_cols - cols) * 2);
    swap_pairs(out, padded_cols, out);
    return;
  }
  float* padded = layout.integer() ? buffer : reinterpret_cast<float*>(out);
  kernels.load_row(input, source.input.type, cols, padded);
  std::fill(padded + cols, padded + int64_t{layout.num_blocks} * kBlockCols, 0.0f);
  if (source.weights != nullptr) {
    const float weight =
        source.weights[source.weight_index == nullptr ? row : source.weight_index[row]];
    for (int64_t i = 0; i < cols; ++i) padded[i] *= weight;
  }
  finish_row(kernels, channel_scale, format, cols, layout, padded, out);
}

}  // namespace switchyard::cpu
