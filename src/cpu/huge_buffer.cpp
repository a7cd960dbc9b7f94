#include "cpu/huge_buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include "core/math.h"
#include "switchyard/error.h"

namespace switchyard::cpu {

HugeBuffer::HugeBuffer(int64_t bytes) {
  constexpr int64_t kHugePage = int64_t{2} << 20;
  if (bytes <= 0) return;
  const int64_t wanted = align_up(bytes, kHugePage) + kHugePage;
  void* mapping = mmap(nullptr, static_cast<size_t>(wanted), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("packed weights need {} bytes; the system refused them", bytes));
  }
  mapping_ = mapping;
  mapping_bytes_ = wanted;
  bytes_ = bytes;
  data_ = reinterpret_cast<uint8_t*>(align_up(reinterpret_cast<int64_t>(mapping), kHugePage));
  madvise(data_, static_cast<size_t>(align_up(bytes, kHugePage)), MADV_HUGEPAGE);  // a wish only
}

HugeBuffer::~HugeBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, static_cast<size_t>(mapping_bytes_));
}

}  // namespace switchyard::cpu
