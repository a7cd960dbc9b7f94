#pragma once
// What a benchmark times: several packed copies of one layer, together larger than the caches.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/machine.h"
#include "switchyard/layer.h"

namespace switchyard::cli {

struct BenchSource {
  std::string model;   ///< built-in name or model directory
  std::string format;  ///< empty: the model's own
  int64_t layer = -1;  ///< of a directory; -1: its first MoE layer
};

struct BenchModel {
  std::string title;
  LayerSpec spec{};
  int64_t expert_bytes = 0;  ///< stored bytes of one routed expert
  int64_t shared_bytes = 0;  ///< stored bytes that every forward reads beside them
  int64_t vocab_size = 0;    ///< hash layers: input_ids lie below it
  std::vector<Layer> layers;
  double pack_seconds = 0;

  int64_t packed_bytes() const;
};

/// Packs `num_layers` copies; 0 packs as many as make a token's experts cold: together 1 GiB or 4
/// times the last-level cache, within 40 % of the memory.
BenchModel make_bench_model(const BenchSource& source, const LayerFlags& flags, int64_t num_layers,
                            const Machine& machine);

/// The rule behind 0, for layers of `layer_bytes`.
int64_t auto_num_layers(int64_t layer_bytes, const Machine& machine);

}  // namespace switchyard::cli
