// Safetensors: one file, or the shards that an index names, mapped and validated.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>

#include "checkpoint/json.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/safetensors_header.h"
#include "switchyard/checkpoint.h"
#include "switchyard/error.h"

namespace switchyard {

namespace fs = std::filesystem;

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

[[noreturn]] void fail(const std::string& path, const std::string& message) {
  throw Error(ErrorCode::kInvalidFile, fmt::format("{}: {}", path, message));
}

/// Shard names come from a downloaded index: a plain file name, nothing that leaves the directory.
/// Symbolic links are followed, because the Hugging Face cache consists of them.
void check_shard_name(const std::string& name, const std::string& index_path) {
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
  if (!plain) {
    fail(index_path, fmt::format("shard name is '{}'; must be a plain file name beside the index",
                                 printable(name)));
  }
}

/// Tensor name -> shard name.
std::map<std::string, std::string> read_index(const std::string& index_path) {
  const nlohmann::json json = parse_json(read_text_file(index_path, kMaxHeaderBytes), index_path);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    fail(index_path, "has no object 'weight_map'");
  }
  std::map<std::string, std::string> shards;
  for (const auto& item : json["weight_map"].items()) {
    if (!item.value().is_string()) {
      fail(index_path, fmt::format("weight_map '{}' is no string", printable(item.key())));
    }
    const auto& shard = item.value().get_ref<const std::string&>();
    check_shard_name(shard, index_path);
    shards.emplace(item.key(), shard);
  }
  if (shards.empty()) fail(index_path, "weight_map is empty");
  return shards;
}

/// Explains a directory without safetensors by what it holds instead.
[[noreturn]] void fail_no_safetensors(const std::string& directory) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".gguf" || extension == ".bin" || extension == ".pth" || extension == ".pt") {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("{}: holds {} but no {}; only safetensors checkpoints can be read",
                              directory, entry.path().filename().string(), kSingleFile));
    }
  }
  fail(directory, fmt::format("holds neither {} nor {}", kSingleFile, kIndexFile));
}

}  // namespace

struct Safetensors::Impl {
  std::vector<MappedFile> files;
  std::vector<CheckpointTensor> tensors;

  void add_file(const std::string& path);
  void add_shards(const std::string& directory);
  void sort_and_check_unique();
  const CheckpointTensor* find(const std::string& name) const noexcept;
};

void Safetensors::Impl::add_file(const std::string& path) {
  if (fs::path(path).extension() == ".gguf") {
    throw Error(ErrorCode::kUnsupported, path + ": is GGUF; only safetensors files can be read");
  }
  MappedFile file(path);
  const SafetensorsHeader header = parse_safetensors_header(file.bytes(), path);
  std::vector<CheckpointTensor> found = list_tensors(header, file.bytes(), path);
  tensors.insert(tensors.end(), std::make_move_iterator(found.begin()),
                 std::make_move_iterator(found.end()));
  files.push_back(std::move(file));
}

void Safetensors::Impl::add_shards(const std::string& directory) {
  const std::string index_path = (fs::path(directory) / kIndexFile).string();
  const std::map<std::string, std::string> shard_of = read_index(index_path);
  std::map<std::string, std::string> path_of;
  for (const auto& [name, shard] : shard_of) {
    path_of.emplace(shard, (fs::path(directory) / shard).string());
  }
  for (const auto& [shard, path] : path_of) {
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      fail(index_path, fmt::format("names the shard '{}', which does not exist", printable(shard)));
    }
    add_file(path);
  }
  sort_and_check_unique();
  for (const auto& [name, shard] : shard_of) {
    const CheckpointTensor* tensor = find(name);
    if (tensor == nullptr || tensor->file != path_of.at(shard)) {
      fail(index_path,
           fmt::format("tensor '{}' is not in its shard '{}'", printable(name), printable(shard)));
    }
  }
}

void Safetensors::Impl::sort_and_check_unique() {
  std::sort(tensors.begin(), tensors.end(),
            [](const CheckpointTensor& a, const CheckpointTensor& b) { return a.name < b.name; });
  const auto twin = std::adjacent_find(
      tensors.begin(), tensors.end(),
      [](const CheckpointTensor& a, const CheckpointTensor& b) { return a.name == b.name; });
  if (twin != tensors.end()) {
    fail(twin->file,
         fmt::format("tensor '{}' is also in {}", printable(twin->name), std::next(twin)->file));
  }
}

const CheckpointTensor* Safetensors::Impl::find(const std::string& name) const noexcept {
  const auto at = std::lower_bound(
      tensors.begin(), tensors.end(), name,
      [](const CheckpointTensor& tensor, const std::string& key) { return tensor.name < key; });
  return at != tensors.end() && at->name == name ? &*at : nullptr;
}

Safetensors Safetensors::open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    impl->add_file(path);
  } else if (fs::exists(fs::path(path) / kSingleFile, ignored)) {
    impl->add_file((fs::path(path) / kSingleFile).string());
  } else if (fs::exists(fs::path(path) / kIndexFile, ignored)) {
    impl->add_shards(path);
  } else {
    fail_no_safetensors(path);
  }
  impl->sort_and_check_unique();
  return Safetensors(std::move(impl));
}

Safetensors::Safetensors(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Safetensors::Safetensors(Safetensors&&) noexcept = default;
Safetensors& Safetensors::operator=(Safetensors&&) noexcept = default;
Safetensors::~Safetensors() = default;

const std::vector<CheckpointTensor>& Safetensors::tensors() const noexcept {
  return impl_->tensors;
}

const CheckpointTensor* Safetensors::find(const std::string& name) const noexcept {
  return impl_->find(name);
}

const CheckpointTensor& Safetensors::at(const std::string& name) const {
  if (const CheckpointTensor* tensor = find(name)) return *tensor;
  const std::string where = impl_->files.size() == 1 && !impl_->tensors.empty()
                                ? impl_->tensors.front().file
                                : fmt::format("{} safetensors files", impl_->files.size());
  throw Error(ErrorCode::kInvalidFile,
              fmt::format("tensor '{}' is missing in {}", printable(name), where));
}

namespace {

/// Bytes from the first to the last element of the view.
size_t span_bytes(const TensorView& view) {
  int64_t last = 0;
  for (int d = 0; d < view.rank; ++d) last += (view.extent(d) - 1) * view.stride(d);
  return static_cast<size_t>((last + 1) * element_bytes(view.type));
}

}  // namespace

void Safetensors::release(const TensorView& view) const noexcept {
  if (view.empty() || view.num_elements() == 0) return;
  for (const MappedFile& file : impl_->files) {
    if (file.contains(view.data)) return file.release(view.data, span_bytes(view));
  }
}

void Safetensors::prefetch(const TensorView& view) const noexcept {
  if (view.empty() || view.num_elements() == 0) return;
  for (const MappedFile& file : impl_->files) {
    if (file.contains(view.data)) return file.will_need(view.data, span_bytes(view));
  }
}

}  // namespace switchyard
