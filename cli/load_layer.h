#pragma once
// From a model directory to a packed layer, with a progress bar while the weights are packed.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "switchyard/checkpoint.h"
#include "switchyard/device_memory.h"
#include "switchyard/layer.h"

namespace switchyard::cli {

/// Throws Error{kInvalidArgument} naming the MoE layers when `index` is none of them.
void check_is_moe_layer(const Checkpoint& checkpoint, int64_t index);

/// Layer::create with a progress bar.
Layer create_layer(const LayerSpec& spec, const Weights& weights, LayerOptions options,
                   const std::string& label);

/// Workspace for a layer, filled with NaNs: no result may depend on what it held.
DeviceMemory make_scratch(const Layer& layer, int64_t max_tokens);

/// A layer and its workspace. Arguments are views of host memory; where the backend computes
/// elsewhere they are copied there and back.
class Runner {
 public:
  /// Both must outlive the runner.
  Runner(const Layer& layer, const DeviceMemory& scratch) : layer_(&layer), scratch_(&scratch) {}

  /// Arguments where the backend can read them.
  struct Prepared {
    ForwardArgs args{};
    std::vector<DeviceMemory> memory{};
    std::vector<std::pair<size_t, void*>> outputs{};  ///< memory index, host address
  };
  Prepared prepare(const ForwardArgs& host_args) const;
  /// Returns when the result is there.
  void run(const Prepared& prepared) const;
  /// Brings the outputs to the host views that they were prepared from.
  static void fetch(const Prepared& prepared);

  void forward(const ForwardArgs& host_args) const {
    const Prepared prepared = prepare(host_args);
    run(prepared);
    fetch(prepared);
  }

 private:
  const Layer* layer_;
  const DeviceMemory* scratch_;
};

}  // namespace switchyard::cli
