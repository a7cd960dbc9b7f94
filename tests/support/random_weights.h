#pragma once
// Random weights in any format, scale block and orientation; the storage is owned here.

#include <cstdint>
#include <memory>
#include <vector>

#include "support/buffer.h"
#include "support/random.h"
#include "switchyard/weights.h"

namespace switchyard::test {

/// How a random matrix is stored.
struct MatrixOptions {
  Format format = Format::kBf16;
  ScaleBlock scale_block{};
  DataType scale_type = DataType::kF32;  ///< of FP8, INT8 and INT4; the others fix their own
  bool transposed = false;               ///< stored as [K, N]
  bool int32_words = false;              ///< 4-bit values in kI32 instead of kU8
  bool zero_points = false;              ///< INT4
  bool group_index = false;              ///< INT4: actorder
  bool smooth_scales = false;            ///< INT8
  float global_scale = 1.0f;
  double deviation = 0;  ///< of the real values; 0 = 1 / sqrt(cols), so products stay near 1
};

/// Options with the format's usual scale block, as with_format gives it.
MatrixOptions usual_matrix(Format format);

/// A matrix and the memory behind it. Blocks have different magnitudes, so a scale read from the
/// wrong place shows.
struct OwnedMatrix {
  WeightMatrix matrix{};
  std::vector<Buffer> storage{};
};
OwnedMatrix random_matrix(Random& random, int64_t rows, int64_t cols, const MatrixOptions& options);

/// How gate and up are stored.
enum class GateUpStorage { kSeparate, kConcatenated, kInterleaved };

struct WeightsOptions {
  uint64_t seed = 1;
  /// Format and scale block come from the spec; the rest from here.
  MatrixOptions matrix{};
  GateUpStorage gate_up = GateUpStorage::kSeparate;
  bool biases = false;
  DataType bias_type = DataType::kBf16;
  double bias_deviation = 1.0;
  bool router = true;
  bool logit_bias = false;
  bool selection_bias = false;
  bool per_expert_scale = false;
  bool input_norm = false;
  int64_t vocabulary = 64;                   ///< hash layers
  Format shared_format = Format::kBf16;      ///< of the shared expert
  Format projection_format = Format::kBf16;  ///< of router, shared gate and latent projections
};

/// Everything a layer of `spec` needs.
class RandomWeights {
 public:
  explicit RandomWeights(const LayerSpec& spec, const WeightsOptions& options = {});
  /// Views into this object, which must stay alive. Edit the copy to make a broken one.
  Weights weights() const;
  /// Stored matrices of one routed expert.
  const ExpertWeights& expert(int64_t index) const {
    return experts_.at(static_cast<size_t>(index));
  }

 private:
  ExpertWeights make_expert(Random& random, const LayerSpec& spec, int64_t width,
                            int64_t intermediate, const MatrixOptions& matrix,
                            const WeightsOptions& options);
  WeightMatrix keep(OwnedMatrix owned);
  TensorView keep(Buffer buffer);

  std::vector<std::unique_ptr<Buffer>> storage_;
  std::vector<ExpertWeights> experts_;
  Weights weights_{};
};

/// [T, K] distinct expert ids per token, uniformly drawn, as i32.
Buffer random_topk_ids(Random& random, int64_t num_tokens, int64_t top_k, int64_t num_experts);
/// [T, K] positive f32 that sum to one per token.
Buffer random_topk_weights(Random& random, int64_t num_tokens, int64_t top_k);

}  // namespace switchyard::test
