// Checkpoint: a model directory, opened by its headers.

#include "switchyard/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <list>
#include <mutex>
#include <set>

#include "checkpoint/layer_assembly.h"
#include "checkpoint/layer_weights.h"
#include "checkpoint/mapped_file.h"
#include "switchyard/error.h"

namespace switchyard {

namespace fs = std::filesystem;

namespace {

/// The largest published config.json has 60 kB.
constexpr size_t kMaxConfigBytes = size_t{16} << 20;

ModelConfig read_config(const fs::path& directory) {
  const std::string path = (directory / "config.json").string();
  ModelConfig config = parse_model_config(read_text_file(path, kMaxConfigBytes), path);
  const std::string extra = (directory / "hf_quant_config.json").string();
  std::error_code ignored;
  if (fs::exists(extra, ignored)) {
    merge_hf_quant_config(config, read_text_file(extra, kMaxConfigBytes), extra);
  }
  return config;
}

/// A layer is MoE when its tensors or config.json say so; layers past num_hidden_layers are
/// multi-token prediction.
std::vector<int64_t> find_moe_layers(const ModelConfig& config, const TensorsByLayer& layers) {
  std::set<int64_t> found;
  for (const auto& [index, tensors] : layers) {
    const bool counted = config.num_hidden_layers == 0 || index < config.num_hidden_layers;
    if (counted && has_experts(tensors)) found.insert(index);
  }
  for (int64_t i = 0; i < static_cast<int64_t>(config.layer_kinds.size()); ++i) {
    const LayerKind kind = config.layer_kind(i);
    if (kind == LayerKind::kMoe || kind == LayerKind::kHashMoe) found.insert(i);
  }
  return {found.begin(), found.end()};
}

CheckpointLayer summary(ResolvedLayer layer) {
  return {.index = layer.tensors.index,
          .family = std::move(layer.family),
          .prefix = layer.tensors.prefix(),
          .weight_format = std::move(layer.weight_format),
          .spec = layer.spec,
          .expert_bytes = layer.expert_bytes,
          .other_bytes = layer.other_bytes,
          .coverage = std::move(layer.tensors.coverage)};
}

}  // namespace

struct Checkpoint::Impl {
  explicit Impl(const std::string& directory)
      : config(read_config(directory)), files(Safetensors::open(directory)) {
    layers = group_by_layer(files.tensors());
    moe_layers = find_moe_layers(config, layers);
    if (config.num_hidden_layers == 0 && !layers.empty()) {
      config.num_hidden_layers = layers.rbegin()->first + 1;
    }
  }

  ResolvedLayer resolve(int64_t index) const;
  ResolvedLayer resolve_complete(int64_t index) const;

  ModelConfig config;
  Safetensors files;
  TensorsByLayer layers;
  std::vector<int64_t> moe_layers;
  mutable std::mutex mutex;
  mutable std::list<Arena> arenas;  ///< of every Weights handed out
};

ResolvedLayer Checkpoint::Impl::resolve(int64_t index) const {
  if (!std::binary_search(moe_layers.begin(), moe_layers.end(), index)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("layer is {}; {}", index,
                            moe_layers.empty() ? std::string("the model has no MoE layer")
                                               : fmt::format("the MoE layers are {}",
                                                             fmt::join(moe_layers, ", "))));
  }
  const auto at = layers.find(index);
  static const std::vector<const CheckpointTensor*> none;
  const auto& tensors = at == layers.end() ? none : at->second;
  return resolve_layer(config,
                       collect_layer(index, tensors, config.num_experts.at(index).value_or(0)));
}

ResolvedLayer Checkpoint::Impl::resolve_complete(int64_t index) const {
  ResolvedLayer layer = resolve(index);
  const Coverage& coverage = layer.tensors.coverage;
  if (!coverage.complete()) {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("layer {}: tensors {}", index, describe(coverage)));
  }
  return layer;
}

Checkpoint Checkpoint::open(const std::string& directory) {
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored)) {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{}: is no directory; a checkpoint is a directory with config.json and "
                            "safetensors files",
                            directory));
  }
  return Checkpoint(std::make_unique<Impl>(directory));
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const std::string& Checkpoint::model_type() const noexcept { return impl_->config.model_type; }

int64_t Checkpoint::num_hidden_layers() const noexcept { return impl_->config.num_hidden_layers; }

const std::vector<int64_t>& Checkpoint::moe_layers() const noexcept { return impl_->moe_layers; }

CheckpointLayer Checkpoint::layer(int64_t index) const {
  return summary(impl_->resolve_complete(index));
}

CheckpointLayer Checkpoint::inspect(int64_t index) const { return summary(impl_->resolve(index)); }

Weights Checkpoint::weights(int64_t index) const {
  auto layer = std::make_shared<const ResolvedLayer>(impl_->resolve_complete(index));
  Arena* arena = nullptr;
  {
    const std::lock_guard lock(impl_->mutex);
    arena = &impl_->arenas.emplace_back();
  }
  return build_weights(std::move(layer), impl_->files, *arena);
}

}  // namespace switchyard
