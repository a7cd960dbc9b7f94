#pragma once
// Shared experts as some more of the routed ones: every token takes them, so they need no chain of
// kernels of their own.

#include <string>

#include "switchyard/weights.h"

namespace switchyard {

/// The experts of a layer as they are to be packed.
struct FusedShared {
  /// The layer's, with the shared experts as num_fused_shared trailing ones.
  LayerSpec spec{};
  ExpertSource experts{};
  /// Why that cannot be; then spec and experts are the routed ones alone.
  std::string why_not{};
};

/// For a valid layer with shared experts; their gate's value becomes their weight. Loads expert 0
/// to see how the routed ones are stored; the result hands it out again when it is asked for. n
/// times as wide as a routed expert, the shared ones become n experts with a part of the
/// intermediate each, whose outputs add up to theirs.
FusedShared fuse_shared(const LayerSpec& spec, const ExpertSource& routed,
                        const ExpertWeights& shared);

}  // namespace switchyard
