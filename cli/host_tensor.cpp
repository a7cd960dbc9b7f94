#include "cli/host_tensor.h"

#include <cstring>

#include "switchyard/ops.h"

namespace switchyard::cli {

HostTensor::HostTensor(DataType type, std::initializer_list<int64_t> shape) {
  int64_t bytes = element_bytes(type);
  for (const int64_t extent : shape) bytes *= extent;
  memory_ = std::make_shared<DeviceMemory>(BackendKind::kCpu, 0, bytes);
  if (bytes > 0) std::memset(memory_->data(), 0, static_cast<size_t>(bytes));
  view_ = TensorView::contiguous(memory_->data(), type, shape);
}

TensorView rows_of(const TensorView& tensor, int64_t begin, int64_t count) {
  TensorView rows = tensor;
  rows.data = tensor.as<std::byte>() + begin * tensor.stride(0) * element_bytes(tensor.type);
  rows.shape[0] = count;
  return rows;
}

HostTensor convert(const TensorView& tensor, DataType type) {
  const int64_t num_tokens = tensor.extent(0);
  const int64_t columns = tensor.extent(1);
  HostTensor result(type, {num_tokens, columns});
  // A combine of one expert with weight 1 is the library's conversion between the three types.
  ops::combine(
      {.expert_output = TensorView::contiguous(tensor.data, tensor.type, {num_tokens, 1, columns}),
       .output = result.view()});
  return result;
}

bool same_bits(const TensorView& a, const TensorView& b) {
  const int64_t bytes = a.num_elements() * element_bytes(a.type);
  return a.type == b.type && a.num_elements() == b.num_elements() &&
         std::memcmp(a.data, b.data, static_cast<size_t>(bytes)) == 0;
}

}  // namespace switchyard::cli
