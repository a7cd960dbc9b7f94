#pragma once
// A Mixtral-shaped checkpoint of a few kilobytes, and its block in double by its own few lines.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/temp_dir.h"
#include "support/buffer.h"
#include "switchyard/checkpoint.h"

namespace switchyard::test {

/// One MoE layer (index 0): H 72, I 40, E 6, K 2, bf16, softmax over the chosen, SwiGLU.
class TinyModel {
 public:
  static constexpr int64_t kHidden = 72;
  static constexpr int64_t kInner = 40;
  static constexpr int64_t kExperts = 6;
  static constexpr int64_t kTopK = 2;

  TinyModel();
  const std::string& directory() const { return directory_; }
  std::string file(const std::string& name) const { return temp_.file(name); }
  const std::filesystem::path& outside() const { return temp_.path(); }
  /// Writes the weights again without, or with more, tensors.
  void rewrite(const std::function<void(std::vector<NamedTensor>&)>& change) const;

  struct Expected {
    std::vector<double> output;     ///< [T, H]
    std::vector<int32_t> topk_ids;  ///< [T, K]
    std::vector<double> topk_weights;
  };
  Expected expected(const Buffer& hidden_states) const;

 private:
  struct Expert {
    Buffer gate, up, down;
  };
  std::vector<NamedTensor> tensors() const;

  testing::TempDir temp_;
  std::string directory_;
  Buffer router_;
  std::vector<Expert> experts_;
};

}  // namespace switchyard::test
