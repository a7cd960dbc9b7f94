#pragma once
// Hugging Face model directories: config.json, safetensors (one file or sharded), tensor-name
// families. Fails closed: a tensor of a layer is used, known to be ignorable, or an error.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "switchyard/export.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"
#include "switchyard/weights.h"

namespace switchyard {

/// One tensor in a safetensors file, memory-mapped.
struct CheckpointTensor {
  std::string name;
  std::string file;   ///< path of its shard
  std::string dtype;  ///< as the header says, e.g. "BF16", "F8_E4M3", "F4"
  /// F4 becomes kU8 with the last extent halved, U16 and U64 travel as kI16 and kI64; extents
  /// beyond rank 4 are folded into the first.
  TensorView view{};
  int64_t bytes = 0;
};

/// A safetensors file or a directory with an index, validated before the first access.
class SWITCHYARD_EXPORT Safetensors {
 public:
  /// Path of a .safetensors file, or of a directory holding model.safetensors or
  /// model.safetensors.index.json.
  static Safetensors open(const std::string& path);
  Safetensors(Safetensors&&) noexcept;
  Safetensors& operator=(Safetensors&&) noexcept;
  ~Safetensors();
  const std::vector<CheckpointTensor>& tensors() const noexcept;  ///< sorted by name
  const CheckpointTensor* find(const std::string& name) const noexcept;
  /// Throws Error{kInvalidFile} when absent.
  const CheckpointTensor& at(const std::string& name) const;
  /// Tells the kernel that the mapped pages of this range are no longer needed.
  void release(const TensorView& view) const noexcept;
  /// Tells the kernel that this range will be read soon.
  void prefetch(const TensorView& view) const noexcept;

 private:
  struct Impl;
  explicit Safetensors(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Named tensors to write; written to a temporary file and renamed, so a reader never sees half a
/// file.
struct NamedTensor {
  std::string name;
  TensorView view{};
};
SWITCHYARD_EXPORT void save_safetensors(const std::string& path,
                                        const std::vector<NamedTensor>& tensors);

/// What became of the tensors of one layer.
struct Coverage {
  int64_t used = 0;
  int64_t ignored = 0;  ///< known and not part of the MoE block
  std::vector<std::string> ignored_names{};
  std::vector<std::string> unknown{};  ///< under the block's prefix and not understood: an error
  std::vector<std::string> missing{};  ///< expected and absent: an error
  bool complete() const { return unknown.empty() && missing.empty(); }
};

/// One MoE layer as described by config and headers; no weight byte has been read.
struct CheckpointLayer {
  int64_t index = 0;
  std::string family;         ///< "B: mlp per expert", ...
  std::string prefix;         ///< e.g. "model.layers.3.mlp."
  std::string weight_format;  ///< readable, e.g. "fp8_e4m3, scales 128x128 f32"
  LayerSpec spec{};
  int64_t expert_bytes = 0;  ///< stored bytes of one routed expert, scales and biases included
  int64_t other_bytes = 0;   ///< router, shared experts, latent projections
  Coverage coverage{};
};

/// A model directory.
class SWITCHYARD_EXPORT Checkpoint {
 public:
  /// Reads config.json and headers only.
  static Checkpoint open(const std::string& directory);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::string& model_type() const noexcept;
  int64_t num_hidden_layers() const noexcept;
  /// Indices of the layers that have a MoE block, ascending.
  const std::vector<int64_t>& moe_layers() const noexcept;
  /// Throws Error naming every missing or unknown tensor, or the contradiction between config and
  /// headers.
  CheckpointLayer layer(int64_t index) const;
  /// The same, but coverage errors are left in the result (for `inspect`).
  CheckpointLayer inspect(int64_t index) const;
  /// Views into the mapped files; valid while this object lives. Fails like layer().
  Weights weights(int64_t index) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
