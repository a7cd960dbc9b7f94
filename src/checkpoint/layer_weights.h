#pragma once
// The Weights of a resolved layer: views into the mapped files, expert by expert.

#include <memory>

#include "checkpoint/arena.h"
#include "checkpoint/layer_assembly.h"
#include "switchyard/checkpoint.h"
#include "switchyard/weights.h"

namespace switchyard {

/// `files` must outlive the result. What had to be copied for the once-per-token weights lives in
/// `arena`.
Weights build_weights(std::shared_ptr<const ResolvedLayer> layer, const Safetensors& files,
                      Arena& arena);

}  // namespace switchyard
