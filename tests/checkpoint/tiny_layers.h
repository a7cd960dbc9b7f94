#pragma once
// One MoE layer of every naming family, with the truth of every matrix.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/tiny_model.h"

namespace switchyard::testing {

// No multiple of 128, so that blocks are partial; a fused gate_up is cut inside a block.
inline constexpr int64_t kHidden = 136;
inline constexpr int64_t kInner = 72;
inline constexpr int64_t kExperts = 4;
inline constexpr int64_t kTopK = 2;

struct ExpertTruth {
  Truth gate{}, up{}, down{};
  std::vector<double> gate_bias{}, up_bias{}, down_bias{};
};
struct LayerTruth {
  std::vector<ExpertTruth> experts{};
  Truth router{};
  std::optional<ExpertTruth> shared{};
  std::vector<double> selection_bias{}, logit_bias{};
};

/// Names of one family. {e} in `expert` is the expert.
struct FamilyNames {
  std::string block;  ///< "model.layers.3.mlp."
  std::string router = "gate";
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
  std::string shared{};  ///< "shared_experts."
  std::string shared_gate = "gate_proj", shared_up = "up_proj", shared_down = "down_proj";
  std::string selection_bias{};  ///< "gate.e_score_correction_bias"
  bool gated = true;
};

inline LayerTruth add_experts(TinyModel& model, const FamilyNames& names, Stored stored,
                              int64_t width = kHidden) {
  LayerTruth truth;
  truth.router = model.add_matrix(Stored::kBf16, names.block + names.router, kExperts, kHidden);
  for (int64_t e = 0; e < kExperts; ++e) {
    const std::string base = names.block + "experts." + std::to_string(e) + ".";
    ExpertTruth expert;
    if (names.gated) expert.gate = model.add_matrix(stored, base + names.gate, kInner, width);
    expert.up = model.add_matrix(stored, base + names.up, kInner, width);
    expert.down = model.add_matrix(stored, base + names.down, width, kInner);
    truth.experts.push_back(expert);
  }
  if (!names.shared.empty()) {
    const std::string base = names.block + names.shared;
    truth.shared.emplace();
    if (names.gated) {
      truth.shared->gate =
          model.add_matrix(Stored::kBf16, base + names.shared_gate, kInner, kHidden);
    }
    truth.shared->up = model.add_matrix(Stored::kBf16, base + names.shared_up, kInner, kHidden);
    truth.shared->down = model.add_matrix(Stored::kBf16, base + names.shared_down, kHidden, kInner);
  }
  if (!names.selection_bias.empty()) {
    truth.selection_bias = model.add_vector(names.block + names.selection_bias, kExperts);
  }
  return truth;
}

/// A stack of matrices in one BF16 (or F32) tensor, [E, N, K] or, K-major, [E, K, N].
inline std::vector<Truth> add_stack(TinyModel& model, const std::string& name, int64_t rows,
                                    int64_t cols, bool k_major, Stored stored = Stored::kBf16) {
  const Shape shape = k_major ? Shape{kExperts, cols, rows} : Shape{kExperts, rows, cols};
  const Truth all = model.floats(name, stored, shape, kExperts * rows * cols, 1);
  std::vector<Truth> out;
  for (int64_t e = 0; e < kExperts; ++e) {
    Truth& truth = out.emplace_back(TinyModel::empty(rows, cols));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        truth.at(r, c) = all.at(e * rows * cols + (k_major ? c * rows + r : r * cols + c), 0);
      }
    }
  }
  return out;
}

/// Rows of gate or up out of a fused truth.
inline Truth take_rows(const Truth& both, int64_t begin, int64_t step) {
  Truth out = TinyModel::empty(both.rows / 2, both.cols);
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) out.at(r, c) = both.at(begin + r * step, c);
  }
  return out;
}
inline std::vector<double> take_every(const std::vector<double>& both, int64_t begin, int64_t step,
                                      int64_t count) {
  std::vector<double> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(both[static_cast<size_t>(begin + i * step)]);
  return out;
}

inline std::vector<ExpertTruth> split_stacks(const std::vector<Truth>& gate_up,
                                             const std::vector<Truth>& down, bool interleaved) {
  std::vector<ExpertTruth> out;
  for (size_t e = 0; e < gate_up.size(); ++e) {
    const int64_t half = gate_up[e].rows / 2;
    out.push_back({.gate = take_rows(gate_up[e], 0, interleaved ? 2 : 1),
                   .up = take_rows(gate_up[e], interleaved ? 1 : half, interleaved ? 2 : 1),
                   .down = down[e]});
  }
  return out;
}

/// A stack quantised matrix by matrix: `encode` returns the parts of one, which are concatenated.
struct StackPart {
  std::string name, dtype;
  Shape shape;  ///< of one matrix
  Bytes data;
};
inline std::vector<Truth> add_quantised_stack(
    TinyModel& model, int64_t rows, int64_t cols,
    const std::function<std::vector<StackPart>(Truth&)>& encode) {
  std::vector<Truth> truths;
  std::vector<StackPart> whole;
  for (int64_t e = 0; e < kExperts; ++e) {
    Truth truth = TinyModel::empty(rows, cols);
    std::vector<StackPart> parts = encode(truth);
    if (whole.empty()) {
      whole = parts;
    } else {
      for (size_t i = 0; i < parts.size(); ++i) {
        whole[i].data.insert(whole[i].data.end(), parts[i].data.begin(), parts[i].data.end());
      }
    }
    truths.push_back(truth);
  }
  for (const StackPart& part : whole) {
    Shape shape = part.shape;
    shape.insert(shape.begin(), kExperts);
    model.add(part.name, part.dtype, shape, part.data);
  }
  return truths;
}

/// Keys most configs share.
inline nlohmann::json base_config(const std::string& model_type) {
  return {{"model_type", model_type},
          {"hidden_size", kHidden},
          {"hidden_act", "silu"},
          {"num_experts_per_tok", kTopK},
          {"num_hidden_layers", 4}};
}

}  // namespace switchyard::testing
