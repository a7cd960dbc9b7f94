#pragma once
// Runs a layer over poisoned output and workspace and checks that nothing else was touched.

#include <gtest/gtest.h>

#include "support/buffer.h"
#include "support/random_weights.h"
#include "switchyard/layer.h"

namespace switchyard::test {

/// What one forward produced.
struct LayerRun {
  Buffer output;
  Buffer topk_ids;
  Buffer topk_weights;
};

/// The backends of this build that can run here.
std::vector<BackendKind> available_backends();

/// forward with the layer's own router (or the args' routing), output, workspace and routing copies
/// poisoned and guarded. Adds gtest failures when a canary or an unwritten element shows.
LayerRun run_layer(const Layer& layer, const TensorView& hidden, ForwardArgs args = {});

/// Token ids in [0, vocabulary) for hash layers, as i64.
Buffer random_input_ids(Random& random, int64_t num_tokens, int64_t vocabulary);

}  // namespace switchyard::test
