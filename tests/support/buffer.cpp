#include "support/buffer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/math.h"
#include "core/number_formats.h"

namespace switchyard::test {
namespace {

constexpr int64_t kGuard = kWorkspaceAlignment;  // also keeps the payload aligned
constexpr std::byte kCanary{0xc5};

bool all_are(const std::byte* begin, const std::byte* end, std::byte value) {
  return std::all_of(begin, end, [value](std::byte b) { return b == value; });
}

}  // namespace

void GuardedMemory::Free::operator()(std::byte* block) const { std::free(block); }

GuardedMemory::GuardedMemory(int64_t bytes) : bytes_(bytes) {
  const int64_t total = align_up(bytes + 2 * kGuard, kGuard);
  block_.reset(static_cast<std::byte*>(
      std::aligned_alloc(static_cast<size_t>(kGuard), static_cast<size_t>(total))));
  if (block_ == nullptr) throw std::bad_alloc();
  std::fill_n(block_.get(), total, kCanary);
  payload_ = block_.get() + kGuard;
  poison();
}

void GuardedMemory::poison() { std::fill_n(payload_, bytes_, kPoison); }

bool GuardedMemory::canaries_intact() const {
  return block_ == nullptr || (all_are(block_.get(), payload_, kCanary) &&
                               all_are(payload_ + bytes_, payload_ + bytes_ + kGuard, kCanary));
}

bool GuardedMemory::untouched(int64_t begin, int64_t end) const {
  return all_are(payload_ + begin, payload_ + end, kPoison);
}

Buffer::Buffer(DataType type, const Shape& shape) {
  int64_t elements = 1;
  for (int64_t extent : shape) elements *= extent;
  memory_ = GuardedMemory(elements * element_bytes(type));
  view_ = {.data = memory_.data(), .type = type, .rank = static_cast<int>(shape.size())};
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    view_.shape[d] = shape[d];
    view_.strides[d] = stride;
    stride *= shape[d];
  }
}

Buffer Buffer::zeros(DataType type, const Shape& shape) {
  Buffer buffer(type, shape);
  std::memset(buffer.view_.data, 0, static_cast<size_t>(buffer.bytes()));
  return buffer;
}

Buffer Buffer::normal(Random& random, DataType type, const Shape& shape, double deviation) {
  Buffer buffer(type, shape);
  for (int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, deviation * random.normal());
  return buffer;
}

Buffer Buffer::of(DataType type, const Shape& shape, const std::vector<double>& values) {
  Buffer buffer(type, shape);
  for (int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, values.at(static_cast<size_t>(i)));
  return buffer;
}

Buffer Buffer::clone() const {
  Buffer copy(view_.type, Shape(view_.shape.begin(), view_.shape.begin() + view_.rank));
  if (bytes() > 0) std::memcpy(copy.view_.data, view_.data, static_cast<size_t>(bytes()));
  return copy;
}

Buffer Buffer::to(DataType type) const {
  Buffer copy(type, Shape(view_.shape.begin(), view_.shape.begin() + view_.rank));
  for (int64_t i = 0; i < size(); ++i) copy.set(i, at(i));
  return copy;
}

double Buffer::at(int64_t index) const {
  if (view_.type == DataType::kF64) return view_.as<double>()[index];
  if (view_.type == DataType::kI64) return static_cast<double>(view_.as<int64_t>()[index]);
  if (view_.type == DataType::kI32) return view_.as<int32_t>()[index];
  return static_cast<double>(load_as_f32(view_.data, view_.type, index));
}

void Buffer::set(int64_t index, double value) {
  switch (view_.type) {
    case DataType::kF64: view_.as<double>()[index] = value; break;
    case DataType::kI64: view_.as<int64_t>()[index] = static_cast<int64_t>(value); break;
    case DataType::kI32: view_.as<int32_t>()[index] = static_cast<int32_t>(value); break;
    case DataType::kI8: view_.as<int8_t>()[index] = static_cast<int8_t>(value); break;
    case DataType::kU8: view_.as<uint8_t>()[index] = static_cast<uint8_t>(value); break;
    default: store_f32(view_.data, view_.type, index, static_cast<float>(value));
  }
}

bool Buffer::untouched(int64_t begin, int64_t end) const {
  const int64_t bytes = element_bytes(view_.type);
  return memory_.untouched(begin * bytes, end * bytes);
}

bool same_bits(const Buffer& a, const Buffer& b) {
  return a.bytes() == b.bytes() &&
         (a.bytes() == 0 ||
          std::memcmp(a.view().data, b.view().data, static_cast<size_t>(a.bytes())) == 0);
}

}  // namespace switchyard::test
