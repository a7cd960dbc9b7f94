// Rows to a quantised format, block by block; core/block_quantize.h is the definition.

#include <algorithm>

#include "core/block_quantize.h"
#include "core/scale_layout.h"
#include "reference/steps.h"

namespace switchyard::reference {

namespace {

class Quantizer {
 public:
  explicit Quantizer(const ops::QuantizeArgs& args)
      : args_(args),
        how_{args.format, args.rounding, args.power_of_two_scales, args.scales.type,
             args.global_scale},
        rows_(args.values.extent(0)),
        cols_(args.input.extent(1)) {}

  void run() const {
    for (int64_t row = 0; row < scale_rows(args_.scale_block, rows_); ++row) {
      for (int64_t col = 0; col < scale_cols(args_.scale_block, cols_); ++col) run_block(row, col);
    }
    if (element_bits(how_.format) == 4 && cols_ % 2 != 0) {
      for (int64_t row = 0; row < rows_; ++row) put(row, cols_, zero_code(how_.format));
    }
  }

 private:
  float input(int64_t row, int64_t col) const {
    if (!args_.row_index.empty()) row = args_.row_index.as<const int32_t>()[row];
    if (row < 0 || row >= args_.input.extent(0)) return 0.0f;
    const TensorView& x = args_.input;
    return quantizer_input(
        load_as_f32(x.data, x.type, row * x.stride(0) + col * x.stride(1)),
        args_.channel_scale.empty() ? 1.0f : args_.channel_scale.as<const float>()[col]);
  }

  void run_block(int64_t scale_row, int64_t scale_col) const {
    const int64_t height = args_.scale_block.rows == 0 ? rows_ : args_.scale_block.rows;
    const int64_t width = args_.scale_block.cols == 0 ? cols_ : args_.scale_block.cols;
    auto each_element = [&](auto body) {
      for (int64_t row = scale_row * height; row < std::min((scale_row + 1) * height, rows_);
           ++row) {
        for (int64_t col = scale_col * width; col < std::min((scale_col + 1) * width, cols_);
             ++col) {
          body(row, col);
        }
      }
    };
    uint32_t amax_bits = 0;
    each_element([&](int64_t row, int64_t col) {
      amax_bits = std::max(amax_bits, f32_bits(input(row, col)) & 0x7fffffffu);
    });
    const BlockScale scale = block_scale(how_, amax_bits);
    const TensorView& scales = args_.scales;
    store_f32(scales.data, scales.type, scale_row * scales.stride(0) + scale_col * scales.stride(1),
              scale.stored);
    each_element([&](int64_t row, int64_t col) {
      put(row, col, quantize_value(how_.format, input(row, col), scale));
    });
  }

  void put(int64_t row, int64_t col, uint8_t code) const {
    auto* bytes = args_.values.as<uint8_t>() + row * args_.values.stride(0);
    if (element_bits(how_.format) == 8) {
      bytes[col] = code;
    } else if (col % 2 == 0) {
      bytes[col / 2] = code;
    } else {
      bytes[col / 2] = static_cast<uint8_t>(bytes[col / 2] | code << 4);
    }
  }

  const ops::QuantizeArgs& args_;
  BlockQuantization how_;
  int64_t rows_, cols_;
};

}  // namespace

void quantize(const ops::QuantizeArgs& args) { Quantizer(args).run(); }

}  // namespace switchyard::reference
