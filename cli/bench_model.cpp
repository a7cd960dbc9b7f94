#include "cli/bench_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>

#include "cli/layer_cost.h"
#include "cli/load_layer.h"
#include "cli/synthetic.h"
#include "cli/text.h"
#include "switchyard/checkpoint.h"
#include "switchyard/models.h"

namespace switchyard::cli {
namespace {

constexpr uint64_t kWeightSeed = 1;

int64_t memory_for_layers(const Machine& machine) {
  return std::min(machine.memory_bytes / 5 * 2, machine.available_memory_bytes / 5 * 4);
}

void check_memory(int64_t bytes, int64_t num_layers, const Machine& machine) {
  // One layer may take what is free: there is no smaller benchmark of it.
  const int64_t limit =
      num_layers > 1 ? memory_for_layers(machine) : machine.available_memory_bytes / 5 * 4;
  if (bytes <= limit) return;
  throw Error(
      ErrorCode::kOutOfMemory,
      fmt::format("--layers is {}: {} of packed weights; at most {} of this machine's {} may "
                  "be used (try a smaller shard, see `switchyard models`)",
                  num_layers, bytes_text(static_cast<double>(bytes)),
                  bytes_text(static_cast<double>(limit)),
                  bytes_text(static_cast<double>(machine.memory_bytes))));
}

void pack(BenchModel& model, const Weights& weights, const LayerFlags& flags, int64_t num_layers,
          const Machine& machine) {
  const auto start = std::chrono::steady_clock::now();
  model.expert_bytes = stored_bytes(weights.experts.load(0));
  if (weights.experts.release) weights.experts.release(0);
  model.shared_bytes = stored_bytes_of_shared(weights);
  if (model.spec.routing.hash) model.vocab_size = weights.router.tid2eid.extent(0);
  const int64_t layer_bytes = model.spec.num_experts * model.expert_bytes + model.shared_bytes;
  if (num_layers == 0) num_layers = auto_num_layers(layer_bytes, machine);
  check_memory(num_layers * layer_bytes, num_layers, machine);
  for (int64_t i = 0; i < num_layers; ++i) {
    model.layers.push_back(create_layer(model.spec, weights, flags.options(),
                                        fmt::format("packing {} of {}", i + 1, num_layers)));
  }
  model.pack_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

BenchModel from_directory(const BenchSource& source, const LayerFlags& flags, int64_t num_layers,
                          const Machine& machine) {
  const Checkpoint checkpoint = Checkpoint::open(source.model);
  int64_t index = source.layer;
  if (index < 0 && !checkpoint.moe_layers().empty()) index = checkpoint.moe_layers().front();
  check_is_moe_layer(checkpoint, index);
  const CheckpointLayer layer = checkpoint.layer(index);
  if (!source.format.empty() && format_from_string(source.format) != layer.spec.weight_format) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--format is {}; the weights of {} are {}", source.format, source.model,
                            to_string(layer.spec.weight_format)));
  }
  BenchModel model;
  model.title = fmt::format("{} layer {}", source.model, index);
  model.spec = flags.apply(layer.spec);
  pack(model, checkpoint.weights(index), flags, num_layers, machine);
  return model;
}

BenchModel from_shape(const BenchSource& source, const LayerFlags& flags, int64_t num_layers,
                      const Machine& machine) {
  if (source.layer >= 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--layer is {}; only a model directory has layers to choose from",
                            source.layer));
  }
  const ModelShape& shape = model_shape(source.model);
  BenchModel model;
  model.spec = flags.apply(source.format.empty()
                               ? shape.spec
                               : with_format(shape.spec, format_from_string(source.format)));
  model.spec.routing.hash = false;  // random token ids would choose uniformly whatever the skew
  model.title = shape.title;
  const SyntheticLayer synthetic(shape, model.spec, kWeightSeed);
  pack(model, synthetic.weights(), flags, num_layers, machine);
  return model;
}

}  // namespace

int64_t BenchModel::packed_bytes() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers) bytes += layer.packed_bytes();
  return bytes;
}

int64_t auto_num_layers(int64_t layer_bytes, const Machine& machine) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  constexpr int64_t kMostLayers = 64;
  const int64_t wanted = std::max(kGiB, 4 * machine.l3_bytes);
  const int64_t fitting = memory_for_layers(machine) / layer_bytes;
  return std::clamp<int64_t>(std::min((wanted + layer_bytes - 1) / layer_bytes, fitting), 1,
                             kMostLayers);
}

BenchModel make_bench_model(const BenchSource& source, const LayerFlags& flags, int64_t num_layers,
                            const Machine& machine) {
  return std::filesystem::is_directory(source.model)
             ? from_directory(source, flags, num_layers, machine)
             : from_shape(source, flags, num_layers, machine);
}

}  // namespace switchyard::cli
