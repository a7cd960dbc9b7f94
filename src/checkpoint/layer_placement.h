#pragma once
// Which layers are MoE, by whichever of the models' keys config.json has.

#include "checkpoint/config_reader.h"

namespace switchyard {

/// Fills num_hidden_layers, layer_kinds and placement.
void read_placement(const ConfigReader& reader, ModelConfig& config);

}  // namespace switchyard
