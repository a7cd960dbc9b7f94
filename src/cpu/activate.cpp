// Activation of a gate/up product, tile by tile.

#include "core/activation.h"
#include "cpu/rows.h"
#include "cpu/steps.h"

namespace switchyard::cpu {
namespace {

/// A kind known at compile time leaves a loop without branches, which vectorises.
template <Activation kKind>
void apply_kind(ActivationSpec spec, const float* gate, float* up, int64_t n) {
  spec.kind = kKind;
  for (int64_t i = 0; i < n; ++i) up[i] = apply_activation<float>(spec, gate[i], up[i]);
}

/// up[i] = activation(gate[i], up[i])
void apply(const ActivationSpec& spec, const float* gate, float* up, int64_t n) {
  switch (spec.kind) {
    case Activation::kSwiGlu: return apply_kind<Activation::kSwiGlu>(spec, gate, up, n);
    case Activation::kSwiGluClamp: return apply_kind<Activation::kSwiGluClamp>(spec, gate, up, n);
    case Activation::kSwiGluOai: return apply_kind<Activation::kSwiGluOai>(spec, gate, up, n);
    case Activation::kGeGluTanh: return apply_kind<Activation::kGeGluTanh>(spec, gate, up, n);
    case Activation::kGeGlu: return apply_kind<Activation::kGeGlu>(spec, gate, up, n);
    case Activation::kSiTu: return apply_kind<Activation::kSiTu>(spec, gate, up, n);
    case Activation::kRelu2: return apply_kind<Activation::kRelu2>(spec, gate, up, n);
  }
}

/// gate and up of columns [column, column + n) from a row of 2I interleaved or concatenated values
/// that begins at element `first`, or of I values when there is no gate.
void load_gate_up(const ops::ActivateArgs& args, const TensorView& tensor, int64_t first,
                  int64_t column, int64_t n, float* gate, float* up) {
  const int64_t intermediate = args.output.extent(1);
  if (!args.activation.gated()) {
    load_row(tensor, first + column, n, up);
  } else if (args.order == GateUpOrder::kConcatenated) {
    load_row(tensor, first + column, n, gate);
    load_row(tensor, first + intermediate + column, n, up);
  } else {
    float both[2 * kTileColumns];
    load_row(tensor, first + 2 * column, 2 * n, both);
    for (int64_t i = 0; i < n; ++i) {
      gate[i] = both[2 * i];
      up[i] = both[2 * i + 1];
    }
  }
}

}  // namespace

void activate(const ops::ActivateArgs& args, Executor& executor) {
  const int64_t intermediate = args.output.extent(1);
  const int64_t row_size = args.input.extent(1);
  for_tiles(executor, args.output.extent(0), intermediate, 4,
            [&](int64_t row, int64_t column, int64_t n) {
              float gate[kTileColumns] = {};
              float up[kTileColumns];
              load_gate_up(args, args.input, row * row_size, column, n, gate, up);
              if (!args.bias.empty()) {
                float gate_bias[kTileColumns] = {};
                float up_bias[kTileColumns];
                load_gate_up(args, args.bias, 0, column, n, gate_bias, up_bias);
                for (int64_t i = 0; i < n; ++i) {
                  gate[i] += gate_bias[i];
                  up[i] += up_bias[i];
                }
              }
              apply(args.activation, gate, up, n);
              store_row(args.output, row * intermediate + column, n, up);
            });
}

}  // namespace switchyard::cpu
