#pragma once
// One table of layers that every backend has to get right.

#include <ostream>
#include <string>
#include <vector>

#include "support/random_weights.h"
#include "switchyard/layer_spec.h"

namespace switchyard::test {

struct LayerCase {
  std::string name;
  LayerSpec spec;
  WeightsOptions weights;
};
inline void PrintTo(const LayerCase& c, std::ostream* os) {
  *os << c.name;
}  // NOLINT: gtest's name

/// Every format, orientation, activation, kind of shared expert, routing and lopsided size, small
/// enough for the naive truth.
const std::vector<LayerCase>& layer_cases();
const LayerCase& layer_case(const std::string& name);

}  // namespace switchyard::test
