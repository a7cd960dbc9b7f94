#pragma once
// `bench --calibrate`: what this machine can do at most.

#include <string>

#include "cli/arguments.h"

namespace switchyard::cli {

/// Measures, prints, writes JSON to `json_path` when there is one; an exit status.
int print_calibration(const LayerFlags& flags, const std::string& json_path);

}  // namespace switchyard::cli
