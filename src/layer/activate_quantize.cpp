// Activation and quantisation of partial sums on a backend whose memory this code can read: its own
// two steps over the sums.

#include <vector>

#include "backend.h"
#include "core/expert_sort.h"
#include "core/number_formats.h"

namespace switchyard {
namespace {

/// Row of `input` that output row `r` is made of; -1: padding.
int64_t input_row(const ops::ActivateQuantizeArgs& args, int64_t r) {
  if (args.sorted_ids.empty()) return r;
  const int32_t packed = args.sorted_ids.as<const int32_t>()[r];
  const int64_t row = int64_t{packed_token(packed)} * args.top_k + packed_slot(packed);
  return packed_slot(packed) < args.top_k && row < args.input.extent(1) ? row : -1;
}

/// First element of the bias of output row `r`.
int64_t bias_begin(const ops::ActivateQuantizeArgs& args, int64_t r) {
  if (args.bias.rank != 2) return 0;
  return args.sorted_expert_ids.as<const int32_t>()[r / args.unit_size] * args.input.extent(2);
}

}  // namespace

void Backend::activate_quantize(const ops::ActivateQuantizeArgs& args,
                                const ops::Execution& where) const {
  const int64_t cols = args.input.extent(2);
  const int64_t rows = args.quantized.values.extent(0);
  const int64_t width = args.activation.gated() ? cols / 2 : cols;
  std::vector<float> sums(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = input_row(args, r);
    for (int64_t c = 0; from >= 0 && c < cols; ++c) {
      float sum = 0.0f;
      for (int64_t b = 0; b < args.input.extent(0); ++b) {
        const int64_t at = (b * args.input.extent(1) + from) * cols + c;
        const float part = load_as_f32(args.input.data, args.input.type, at);
        sum = b == 0 ? part : sum + part;
      }
      if (!args.bias.empty()) {
        sum += load_as_f32(args.bias.data, args.bias.type, bias_begin(args, r) + c);
      }
      sums[static_cast<size_t>(r * cols + c)] = sum;
    }
  }
  std::vector<float> activated(static_cast<size_t>(rows * width));
  ops::QuantizeArgs quantized = args.quantized;
  quantized.input = TensorView::contiguous(activated.data(), DataType::kF32, {rows, width});
  activate({.activation = args.activation,
            .order = args.order,
            .input = TensorView::contiguous(sums.data(), DataType::kF32, {rows, cols}),
            .output = quantized.input},
           where);
  quantize(quantized, where);
}

}  // namespace switchyard
