#pragma once
// Memory that lives as long as the views into it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace switchyard {

class Arena {
 public:
  /// Uninitialised, aligned for every element type.
  template <class T>
  T* allocate(int64_t count) {
    const auto bytes = static_cast<size_t>(count) * sizeof(T);
    blocks_.emplace_back(new std::byte[bytes]);
    return reinterpret_cast<T*>(blocks_.back().get());
  }

 private:
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
};

}  // namespace switchyard
