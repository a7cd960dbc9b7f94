#pragma once
// What a layer must have, by config.json, by its model and by what it has already.

#include "checkpoint/layer_tensors.h"
#include "checkpoint/model_config.h"

namespace switchyard {

/// Adds to the layer's coverage what is missing and what nothing would read.
void expect_tensors(const ModelConfig& config, LayerTensors& layer);

}  // namespace switchyard
