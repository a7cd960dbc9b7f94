// u64 header length, JSON {name: {dtype, shape, data_offsets}}, tensor bytes that tile the rest.

#include "checkpoint/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "checkpoint/json.h"
#include "switchyard/error.h"

namespace switchyard {

namespace {

constexpr int64_t kLengthBytes = 8;

[[noreturn]] void fail(const std::string& path, const std::string& message) {
  throw Error(ErrorCode::kInvalidFile, fmt::format("{}: {}", path, message));
}

uint64_t header_length(std::span<const std::byte> file, const std::string& path) {
  if (file.size() < kLengthBytes) {
    fail(path, fmt::format("file size is {} bytes; a safetensors file has at least {}", file.size(),
                           kLengthBytes));
  }
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<uint64_t>(file[i]);
  }
  if (length > kMaxHeaderBytes) {
    fail(path, fmt::format("header length is {}; at most {} is allowed", length, kMaxHeaderBytes));
  }
  if (length > file.size() - kLengthBytes) {
    fail(path, fmt::format("header length is {}; the file holds only {} bytes after it", length,
                           file.size() - kLengthBytes));
  }
  return length;
}

/// A non-negative integer that fits int64.
int64_t unsigned_value(const nlohmann::json& value, const std::string& path,
                       const std::string& what) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail(path, fmt::format("{} is {}; must be an integer in [0, 2^63)", what,
                           printable(value.dump(-1, ' ', false,
                                                nlohmann::json::error_handler_t::replace))));
  }
  return value.get<int64_t>();
}

/// Bytes of the tensor by its shape. Empty extents count as 1 in the overflow check, because
/// strides are products too.
int64_t shape_bytes(const HeaderTensor& tensor, const std::string& path, const std::string& label) {
  int64_t bits = tensor.type.bits;
  bool empty = false;
  for (const int64_t extent : tensor.shape) {
    empty |= extent == 0;
    if (__builtin_mul_overflow(bits, std::max(extent, int64_t{1}), &bits)) {
      fail(path, fmt::format("{} shape is [{}]; its size overflows 64 bits", label,
                             fmt::join(tensor.shape, ", ")));
    }
  }
  if (empty) return 0;
  const bool odd_pairs = tensor.type.bits < 8 && !tensor.shape.empty() && tensor.shape.back() % 2;
  if (odd_pairs || bits % 8 != 0) {
    fail(path, fmt::format("{} shape is [{}]; {} needs an even last extent", label,
                           fmt::join(tensor.shape, ", "), tensor.type.name));
  }
  return bits / 8;
}

StoredType parse_dtype(const nlohmann::json& value, const std::string& path,
                       const std::string& label) {
  if (!value.is_string()) fail(path, label + " dtype is no string");
  const auto& name = value.get_ref<const std::string&>();
  const std::optional<StoredType> type = stored_type(name);
  if (!type) {
    fail(path,
         fmt::format("{} dtype is '{}'; not a dtype this library knows", label, printable(name)));
  }
  return *type;
}

HeaderTensor parse_tensor(const std::string& name, const nlohmann::json& entry,
                          const std::string& path) {
  const std::string label = fmt::format("tensor '{}'", printable(name));
  if (!entry.is_object()) fail(path, label + " is no JSON object");
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!entry.contains(key)) fail(path, fmt::format("{} has no key '{}'", label, key));
  }
  for (const auto& item : entry.items()) {
    if (item.key() != "dtype" && item.key() != "shape" && item.key() != "data_offsets") {
      fail(path, fmt::format("{} has the unknown key '{}'", label, printable(item.key())));
    }
  }
  HeaderTensor tensor{.name = name, .type = parse_dtype(entry["dtype"], path, label)};
  if (!entry["shape"].is_array()) fail(path, label + " shape is no array");
  for (const auto& extent : entry["shape"]) {
    tensor.shape.push_back(unsigned_value(extent, path, label + " shape extent"));
  }
  const auto& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    fail(path, label + " data_offsets is no array of two");
  }
  tensor.begin = unsigned_value(offsets[0], path, label + " data_offsets begin");
  tensor.end = unsigned_value(offsets[1], path, label + " data_offsets end");
  if (tensor.end < tensor.begin) {
    fail(path, fmt::format("{} data_offsets is [{}, {}]; the end lies before the begin", label,
                           tensor.begin, tensor.end));
  }
  const int64_t bytes = shape_bytes(tensor, path, label);
  if (tensor.end - tensor.begin != bytes) {
    fail(path, fmt::format("{} data_offsets spans {} bytes; {} [{}] needs {}", label,
                           tensor.end - tensor.begin, tensor.type.name,
                           fmt::join(tensor.shape, ", "), bytes));
  }
  return tensor;
}

void check_metadata(const nlohmann::json& metadata, const std::string& path) {
  if (!metadata.is_object()) fail(path, "__metadata__ is no JSON object");
  for (const auto& item : metadata.items()) {
    if (!item.value().is_string()) {
      fail(path, fmt::format("__metadata__ '{}' is no string", printable(item.key())));
    }
  }
}

/// Sorted by offset, every byte of the data must belong to exactly one tensor.
void check_tiling(const std::vector<HeaderTensor>& tensors, int64_t data_bytes,
                  const std::string& path) {
  int64_t expected = 0;
  for (const HeaderTensor& tensor : tensors) {
    if (tensor.end > data_bytes) {
      fail(path, fmt::format("tensor '{}' ends at byte {}; the file holds {} data bytes",
                             printable(tensor.name), tensor.end, data_bytes));
    }
    if (tensor.begin != expected) {
      fail(path, fmt::format("tensor '{}' begins at byte {}; {} at byte {}", printable(tensor.name),
                             tensor.begin,
                             tensor.begin < expected ? "it overlaps the tensor that ends"
                                                     : "there is a gap after the tensor that ends",
                             expected));
    }
    expected = tensor.end;
  }
  if (expected != data_bytes) {
    fail(path,
         fmt::format("tensors end at byte {}; the file holds {} data bytes", expected, data_bytes));
  }
}

/// Extents beyond TensorView's rank are folded into the first one; a 5-D vision filter must not
/// make the file unreadable.
TensorView make_view(const HeaderTensor& tensor, const std::byte* data) {
  std::vector<int64_t> shape = tensor.shape;
  if (tensor.type.bits == 4 && !shape.empty()) shape.back() /= 2;
  while (shape.size() > TensorView::kMaxRank) {
    shape[1] *= shape[0];
    shape.erase(shape.begin());
  }
  TensorView view{.data = const_cast<std::byte*>(data),
                  .type = tensor.type.type,
                  .rank = static_cast<int>(shape.size())};
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    view.shape[d] = shape[d];
    view.strides[d] = stride;
    stride *= shape[d];
  }
  return view;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file,
                                           const std::string& path) {
  const uint64_t length = header_length(file, path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (text.empty() || text.front() != '{') fail(path, "header is no JSON object");
  const nlohmann::json json = parse_json(text, path);

  SafetensorsHeader header{.data_begin = kLengthBytes + static_cast<int64_t>(length)};
  for (const auto& item : json.items()) {
    if (item.key() == "__metadata__") {
      check_metadata(item.value(), path);
    } else {
      header.tensors.push_back(parse_tensor(item.key(), item.value(), path));
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const HeaderTensor& a, const HeaderTensor& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  check_tiling(header.tensors, static_cast<int64_t>(file.size()) - header.data_begin, path);
  return header;
}

std::vector<CheckpointTensor> list_tensors(const SafetensorsHeader& header,
                                           std::span<const std::byte> file,
                                           const std::string& path) {
  std::vector<CheckpointTensor> out;
  for (const HeaderTensor& tensor : header.tensors) {
    out.push_back({.name = tensor.name,
                   .file = path,
                   .dtype = std::string(tensor.type.name),
                   .view = make_view(tensor, file.data() + header.data_begin + tensor.begin),
                   .bytes = tensor.end - tensor.begin});
  }
  return out;
}

}  // namespace switchyard
