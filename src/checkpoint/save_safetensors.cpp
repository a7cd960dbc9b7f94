// Writing safetensors: a temporary file in the same directory, flushed, then renamed.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "checkpoint/dtype.h"
#include "checkpoint/json.h"
#include "core/math.h"
#include "switchyard/checkpoint.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

int64_t tensor_bytes(const TensorView& view) {
  return view.num_elements() * element_bytes(view.type);
}

void check_tensors(const std::vector<NamedTensor>& tensors) {
  std::set<std::string> names;
  for (const NamedTensor& tensor : tensors) {
    const std::string label = fmt::format("tensor '{}'", printable(tensor.name));
    const auto fail = [&label](const char* rule) {
      throw Error(ErrorCode::kInvalidArgument, label + rule);
    };
    if (tensor.name.empty() || tensor.name == "__metadata__") fail(" has a name that is reserved");
    if (!names.insert(tensor.name).second) fail(" is given twice; names must be unique");
    if (!tensor.view.is_contiguous()) fail(" is not contiguous; only dense tensors can be saved");
    if (tensor.view.empty() && tensor.view.num_elements() > 0) fail(" has no data");
  }
}

/// Widest elements first, as the format's own writer does, so that every tensor is aligned.
std::vector<const NamedTensor*> file_order(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  order.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const int64_t a_bytes = element_bytes(a->view.type);
    const int64_t b_bytes = element_bytes(b->view.type);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a->name < b->name;
  });
  return order;
}

std::string header_text(const std::vector<const NamedTensor*>& order) {
  nlohmann::json header = nlohmann::json::object();
  int64_t offset = 0;
  for (const NamedTensor* tensor : order) {
    const TensorView& view = tensor->view;
    const int64_t end = offset + tensor_bytes(view);
    header[tensor->name] = {
        {"dtype", stored_type(view.type).name},
        {"shape", std::vector<int64_t>(view.shape.begin(), view.shape.begin() + view.rank)},
        {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("tensor names are not UTF-8: {}", printable(e.what())));
  }
  text.resize(align_up(text.size(), size_t{8}), ' ');
  return text;
}

/// The file beside `path` that becomes `path`, or vanishes.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path) {
    static std::atomic<unsigned> serial{0};
    do {
      name_ = fmt::format("{}.{}-{}.tmp", path, ::getpid(), serial++);
      fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (fd_ < 0 && errno == EEXIST);
    if (fd_ < 0) fail("create a temporary file for");
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!name_.empty()) ::unlink(name_.c_str());
  }

  void write(const void* data, size_t size) {
    const char* from = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = ::write(fd_, from, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("write");
      from += written;
      size -= static_cast<size_t>(written);
    }
  }

  void publish() {
    if (::fsync(fd_) != 0) fail("flush");
    if (::close(std::exchange(fd_, -1)) != 0) fail("close");
    if (::rename(name_.c_str(), path_.c_str()) != 0) fail("rename the temporary file to");
    name_.clear();
    // The rename itself must reach the disk too; a directory that cannot be synced is no error.
    const std::filesystem::path parent = std::filesystem::path(path_).parent_path();
    const int fd = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
      ::fsync(fd);
      ::close(fd);
    }
  }

 private:
  [[noreturn]] void fail(const char* action) const {
    throw Error(ErrorCode::kInvalidFile,
                fmt::format("{}: cannot {} this file: {}", path_, action, std::strerror(errno)));
  }

  std::string path_;
  std::string name_;  ///< of the temporary file; empty once it has been renamed
  int fd_ = -1;
};

}  // namespace

void save_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors) {
  check_tensors(tensors);
  const std::vector<const NamedTensor*> order = file_order(tensors);
  const std::string header = header_text(order);
  TemporaryFile file(path);
  std::array<unsigned char, 8> length{};
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<unsigned char>(header.size() >> (8 * i));
  }
  file.write(length.data(), length.size());
  file.write(header.data(), header.size());
  for (const NamedTensor* tensor : order) {
    file.write(tensor->view.data, static_cast<size_t>(tensor_bytes(tensor->view)));
  }
  file.publish();
}

}  // namespace switchyard
