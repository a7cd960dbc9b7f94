#include "cli/load_layer.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/progress.h"
#include "cli/text.h"

namespace switchyard::cli {

void check_is_moe_layer(const Checkpoint& checkpoint, int64_t index) {
  const auto& layers = checkpoint.moe_layers();
  if (std::binary_search(layers.begin(), layers.end(), index)) return;
  throw Error(ErrorCode::kInvalidArgument,
              layers.empty() ? fmt::format("--layer is {}; this model has no MoE layers", index)
                             : fmt::format("--layer is {}; the MoE layers are {}", index,
                                           ranges_text(layers)));
}

Layer create_layer(const LayerSpec& spec, const Weights& weights, LayerOptions options,
                   const std::string& label) {
  Progress progress(label);
  options.on_progress = [&progress](int64_t done, int64_t total) { progress.update(done, total); };
  return Layer::create(spec, weights, options);
}

}  // namespace switchyard::cli
