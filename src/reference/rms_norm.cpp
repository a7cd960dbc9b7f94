// Rows divided by their root mean square, times a scale, in double.

#include <algorithm>
#include <cmath>

#include "core/number_formats.h"
#include "reference/steps.h"

namespace switchyard::reference {

void rms_norm(const RmsNormArgs& args) {
  const int64_t num_columns = args.input.extent(1);
  int64_t num_tokens = args.input.extent(0);
  if (!args.num_tokens.empty()) {
    num_tokens = std::min<int64_t>(num_tokens, *args.num_tokens.as<const int32_t>());
  }
  const auto element = [](const TensorView& tensor, int64_t index) {
    return static_cast<double>(load_as_f32(tensor.data, tensor.type, index));
  };
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t first = token * num_columns;
    double sum = 0.0;
    for (int64_t c = 0; c < num_columns; ++c) sum += std::pow(element(args.input, first + c), 2);
    const double rms = std::sqrt(sum / static_cast<double>(num_columns) + double{args.epsilon});
    for (int64_t c = 0; c < num_columns; ++c) {
      const double value = element(args.input, first + c) / rms * element(args.scale, c);
      store_f32(args.output.data, args.output.type, first + c, static_cast<float>(value));
    }
  }
}

}  // namespace switchyard::reference
