#pragma once
// Where every intermediate lies in the caller's workspace: disjoint, aligned, inside `bytes`.

#include <cstdint>

#include "core/math.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// A part of a workspace, in bytes from its start.
struct WorkspaceRegion {
  int64_t begin = 0;
  int64_t bytes = 0;

  constexpr int64_t end() const { return begin + bytes; }
  template <class T = void>
  T* in(Workspace workspace) const {
    return reinterpret_cast<T*>(static_cast<char*>(workspace.data) + begin);
  }
  Workspace of(Workspace workspace) const { return {in(workspace), bytes}; }
};

/// Hands out regions one after the other, each on a kWorkspaceAlignment boundary.
class WorkspaceCarver {
 public:
  constexpr WorkspaceRegion take(int64_t bytes) {
    const WorkspaceRegion region{.begin = end_, .bytes = bytes};
    end_ = align_up(region.end(), kWorkspaceAlignment);
    return region;
  }
  constexpr int64_t bytes() const { return end_; }

 private:
  int64_t end_ = 0;
};

/// Which intermediates of Layer::forward exist, as element counts per token (0 = absent).
struct LayerWorkspaceSizes {
  int64_t num_tokens = 0;
  int64_t router_input = 0;   ///< H, when the router norms its input
  int64_t router_logits = 0;  ///< number of routed experts
  int64_t top_k = 0;
  int64_t shared_weight = 0;  ///< 1, when the shared expert is gated
  int64_t shared_output = 0;  ///< H
  int64_t latent = 0;         ///< L
  int64_t step_bytes = 0;     ///< the largest workspace of any step; steps run one after the other
};

struct LayerWorkspace {
  WorkspaceRegion router_input, router_logits, topk_ids, topk_weights;
  WorkspaceRegion shared_weight, shared_output, latent_input, latent_output, step;
  int64_t bytes = 0;
};

constexpr LayerWorkspace layer_workspace(const LayerWorkspaceSizes& sizes) {
  WorkspaceCarver carver;
  const auto take = [&](int64_t per_token) {
    return carver.take(sizes.num_tokens * per_token * 4);
  };
  LayerWorkspace w;
  w.router_input = take(sizes.router_input);
  w.router_logits = take(sizes.router_logits);
  w.topk_ids = take(sizes.top_k);
  w.topk_weights = take(sizes.top_k);
  w.shared_weight = take(sizes.shared_weight);
  w.shared_output = take(sizes.shared_output);
  w.latent_input = take(sizes.latent);
  w.latent_output = take(sizes.latent);
  w.step = carver.take(sizes.step_bytes);
  w.bytes = carver.bytes();
  return w;
}

}  // namespace switchyard
