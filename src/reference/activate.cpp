// Activation of a gate/up product, in double.

#include "core/activation.h"
#include "core/number_formats.h"
#include "reference/steps.h"

namespace switchyard::reference {

void activate(const ops::ActivateArgs& args) {
  const int64_t intermediate = args.output.extent(1);
  const int64_t row_size = args.input.extent(1);
  const bool interleaved = args.order == GateUpOrder::kInterleaved;
  const auto biased = [&](int64_t row, int64_t column) {
    const float bias =
        args.bias.empty() ? 0.0f : load_as_f32(args.bias.data, args.bias.type, column);
    const float value = load_as_f32(args.input.data, args.input.type, row * row_size + column);
    return double{value} + double{bias};
  };
  for (int64_t row = 0; row < args.output.extent(0); ++row) {
    for (int64_t i = 0; i < intermediate; ++i) {
      double gate = 0.0;
      double up = 0.0;
      if (args.activation.gated()) {
        gate = biased(row, interleaved ? 2 * i : i);
        up = biased(row, interleaved ? 2 * i + 1 : intermediate + i);
      } else {
        up = biased(row, i);
      }
      store_f32(args.output.data, args.output.type, row * intermediate + i,
                static_cast<float>(apply_activation<double>(args.activation, gate, up)));
    }
  }
}

}  // namespace switchyard::reference
