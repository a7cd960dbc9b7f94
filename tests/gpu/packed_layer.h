#pragma once
// The packed matrices of a layer, for kernels that are called by themselves.

#include "cuda/pack_weights.h"
#include "support/random_weights.h"

namespace switchyard::test {

struct PackedLayer {
  cuda::PackedMatrices gate_up, down;
};
inline PackedLayer pack(const LayerSpec& spec, const RandomWeights& weights) {
  const bool gated = spec.activation.gated();
  const ExpertWeights& example = weights.expert(0);
  const FragmentOrder order =
      cuda::fragment_order(spec.activation_format, example.up, example.down, 0);
  PackedLayer packed;
  for (int64_t e = 0; e < spec.num_experts; ++e) {
    const ExpertWeights& w = weights.expert(e);
    if (e == 0) {
      packed.gate_up =
          cuda::PackedMatrices(w.up, gated ? 2 : 1, !w.up_bias.empty(), spec.num_experts, order);
      packed.down = cuda::PackedMatrices(w.down, 1, !w.down_bias.empty(), spec.num_experts, order);
    }
    if (gated) {
      packed.gate_up.pack(e, {w.gate, w.up}, {w.gate_bias, w.up_bias});
    } else {
      packed.gate_up.pack(e, {w.up}, {w.up_bias});
    }
    packed.down.pack(e, {w.down}, {w.down_bias});
  }
  packed.gate_up.finish("gate/up");
  packed.down.finish("down");
  return packed;
}

}  // namespace switchyard::test
