#pragma once
// Random weights of any shape and format, for benchmarks of models that are not on this disk.

#include <cstdint>
#include <vector>

#include "cli/host_tensor.h"
#include "switchyard/layer_spec.h"
#include "switchyard/models.h"
#include "switchyard/weights.h"

namespace switchyard::cli {

class Random;

/// Stored bytes of one routed expert: values, scales and, when there are any, bf16 biases.
int64_t expert_bytes(const LayerSpec& spec, bool biases);

/// One layer of finite random weights, scales of a trained model's size. A few experts' contents
/// serve all experts, so that gigabytes are packed at the packer's speed; what is packed is
/// distinct memory all the same.
class SyntheticLayer {
 public:
  /// `shape`'s weights in `spec`'s format. The selection bias is all zeros: balanced experts.
  /// zero_points: INT4 groups have them.
  SyntheticLayer(const ModelShape& shape, const LayerSpec& spec, uint64_t seed,
                 bool zero_points = false);
  /// Views that live as long as this object.
  Weights weights() const;
  /// Experts with a content of their own.
  size_t num_distinct_contents() const { return experts_.size(); }

 private:
  struct Matrix {
    HostTensor values;
    HostTensor scales;
    HostTensor zero_points;
    WeightMatrix view{};
  };
  struct Expert {
    Matrix gate;
    Matrix up;
    Matrix down;
    HostTensor gate_bias;
    HostTensor up_bias;
    HostTensor down_bias;
    ExpertWeights view() const;
  };
  static Matrix make_matrix(Format format, ScaleBlock block, int64_t rows, int64_t cols,
                            Random& random);
  Expert make_expert(int64_t width, int64_t intermediate_size, bool biases, Random& random) const;

  LayerSpec spec_;
  bool zero_points_;
  std::vector<Expert> experts_;
  Matrix router_;
  HostTensor selection_bias_;
  Expert shared_;
  Matrix shared_gate_;
  Matrix latent_down_;
  Matrix latent_up_;
};

}  // namespace switchyard::cli
