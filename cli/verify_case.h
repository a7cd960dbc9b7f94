#pragma once
// One input kind of `verify`: backend against reference, against itself, and token by token.

#include <cstdint>
#include <string>

#include "cli/router_truth.h"
#include "cli/verify_inputs.h"
#include "switchyard/layer.h"
#include "switchyard/verify.h"

namespace switchyard::cli {

/// Where the worst element is, in all coordinates a kernel author asks for.
struct WorstElement {
  int64_t token = -1;
  int64_t expert = -1;  ///< of the token's experts, the one whose part differs most
  int64_t row = -1;     ///< of the expert-sorted activations
  int64_t column = -1;
};

struct CaseResult {
  std::string name;
  DataType type = DataType::kF32;
  Comparison comparison{};
  ErrorBound bound{};
  WorstElement worst{};
  // Empty strings are passed checks.
  std::string routing;  ///< choice of experts against double logits
  std::string repeat;   ///< the same call twice, over poisoned memory
  std::string batch;    ///< tokens alone against the same tokens in the batch

  bool passed() const {
    return comparison.within(bound) && routing.empty() && repeat.empty() && batch.empty();
  }
};

CaseResult verify_case(const Layer& layer, const Layer& reference, const RouterTruth& router,
                       const InputCase& input);

}  // namespace switchyard::cli
