// Memory that callers get from the library: aligned, theirs, and refused by name where it cannot
// be.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "switchyard/device_memory.h"
#include "switchyard/layer.h"

namespace switchyard {
namespace {

TEST(DeviceMemory, OnTheHostIsAlignedAndCopiesBothWays) {
  for (const BackendKind kind : {BackendKind::kCpu, BackendKind::kReference}) {
    for (const int64_t bytes :
         {int64_t{0}, int64_t{1}, int64_t{255}, int64_t{256}, int64_t{1000}}) {
      std::vector<uint8_t> source(static_cast<size_t>(bytes) + 1);
      for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint8_t>(7 * i + 1);
      const DeviceMemory memory(kind, 0, bytes, source.data());
      ASSERT_NE(memory.data(), nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % kWorkspaceAlignment, 0u);
      EXPECT_EQ(memory.bytes(), bytes);
      EXPECT_EQ(memory.workspace().bytes, bytes);
      EXPECT_NE(memory.data(), source.data());
      std::vector<uint8_t> copy(source.size(), 0xee);
      memory.copy_to(copy.data());
      EXPECT_TRUE(std::equal(source.begin(), source.end() - 1, copy.begin()));
      EXPECT_EQ(copy.back(), 0xee);
    }
    synchronize(kind);
  }
}

ErrorCode refusal(BackendKind kind, int64_t bytes) {
  try {
    const DeviceMemory memory(kind, 0, bytes);
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode{};
}

TEST(DeviceMemory, RefusesWhatCannotBe) {
  EXPECT_EQ(refusal(BackendKind::kAuto, 8), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal(BackendKind::kCpu, -1), ErrorCode::kInvalidArgument);
  const LayerSpec spec{.num_experts = 2, .top_k = 1, .hidden_size = 32, .intermediate_size = 32};
  if (!why_unsupported(spec, BackendKind::kCuda).empty()) {
    const ErrorCode code = refusal(BackendKind::kCuda, 8);
    EXPECT_TRUE(code == ErrorCode::kUnsupported || code == ErrorCode::kDevice);
  }
}

}  // namespace
}  // namespace switchyard
