#pragma once
// The inputs of `verify`: ordinary ones and those that have broken kernels before.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/host_tensor.h"
#include "cli/router_truth.h"
#include "switchyard/layer_spec.h"

namespace switchyard::cli {

struct InputCase {
  std::string name;
  HostTensor hidden_states;  ///< [T, H]
  HostTensor input_ids;      ///< [T] i64, hash layers; otherwise an empty view
};

/// All kinds, `num_tokens` tokens each, the same for the same seed.
std::vector<InputCase> make_input_cases(const LayerSpec& spec, const RouterTruth& router,
                                        int64_t num_tokens, uint64_t seed);

}  // namespace switchyard::cli
