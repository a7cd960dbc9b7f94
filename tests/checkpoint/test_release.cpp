// Memory: an expert's mapped pages are dropped with it.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "checkpoint/tiny_layers.h"
#include "switchyard/checkpoint.h"

namespace switchyard {
namespace {

using namespace ::switchyard::testing;  // NOLINT: the helpers of these tests

/// What this process has mapped of the file that `view` lies in: Rss of its entry in
/// /proc/self/smaps. (mincore would count the page cache.)
int64_t resident_bytes(const TensorView& view) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    unsigned long begin = 0;
    unsigned long end = 0;
    long kilobytes = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto address = reinterpret_cast<uintptr_t>(view.data);
      inside = begin <= address && address < end;
    } else if (inside && std::sscanf(line.c_str(), "Rss: %ld kB", &kilobytes) == 1) {
      return kilobytes * 1024;
    }
  }
  ADD_FAILURE() << "the mapping is not in /proc/self/smaps";
  return 0;
}

/// Reads every page; volatile, or the compiler leaves it out.
void touch(const TensorView& view) {
  const volatile uint8_t* bytes = view.as<const uint8_t>();
  const int64_t size = view.num_elements() * element_bytes(view.type);
  for (int64_t i = 0; i < size; i += 512) (void)bytes[i];
}

TEST(Release, DropsWholePagesInsideTheRangeOnly) {
  const TempDir dir;
  std::vector<uint8_t> data(1 << 20, 7);
  save_safetensors(dir.file("x.safetensors"),
                   {{"a", TensorView::contiguous(data.data(), DataType::kU8, {16, 1 << 16})}});
  const Safetensors file = Safetensors::open(dir.file("x.safetensors"));
  const TensorView view = file.at("a").view;
  touch(view);
  EXPECT_GE(resident_bytes(view), 1 << 20);
  TensorView middle = view;
  middle.data = view.as<uint8_t>() + (4 << 16);
  middle.shape[0] = 8;
  file.release(middle);
  // What stays: the other half and the two pages that the range shares with its neighbours.
  const int64_t page = sysconf(_SC_PAGESIZE);
  EXPECT_LE(resident_bytes(view), (1 << 19) + 4 * page);
  EXPECT_GE(resident_bytes(view), (1 << 19) - 4 * page);
  EXPECT_EQ(middle.as<const uint8_t>()[100], 7) << "a released range reads the file again";
  file.release(TensorView{});  // nothing
}

TEST(Release, PackingALayerKeepsOneExpertResident) {
  // 64 experts of 384 KiB: fused, so that neighbours share a tensor.
  constexpr int64_t kMany = 64;
  constexpr int64_t kWide = 256;
  TinyModel model;
  model.config = base_config("qwen3_vl_moe");
  model.config.update(
      {{"num_experts", kMany}, {"hidden_size", kWide}, {"moe_intermediate_size", kWide}});
  const std::string block = "model.layers.1.mlp.";
  model.add_matrix(Stored::kBf16, block + "gate", kMany, kWide);
  const auto stack = [&](const std::string& name, const Shape& shape) {
    model.add(name, "BF16", shape,
              Bytes(static_cast<size_t>(2 * shape[0] * shape[1] * shape[2]), 1));
  };
  stack(block + "experts.gate_up_proj", {kMany, 2 * kWide, kWide});
  stack(block + "experts.down_proj", {kMany, kWide, kWide});
  const TempDir dir;
  model.write(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path().string());
  const CheckpointLayer layer = checkpoint.layer(1);
  ASSERT_EQ(layer.expert_bytes, 3 * kWide * kWide * 2);
  const Weights weights = checkpoint.weights(1);

  const TensorView first = weights.experts.load(0).gate.values;
  weights.experts.release(0);
  int64_t most = 0;
  for (int64_t e = 0; e < kMany; ++e) {
    const ExpertWeights expert = weights.experts.load(e);
    for (const WeightMatrix* matrix : {&expert.gate, &expert.up, &expert.down}) {
      touch(matrix->values);
    }
    const int64_t resident = resident_bytes(first);
    EXPECT_GE(resident, layer.expert_bytes) << "nothing was read";
    most = std::max(most, resident);
    weights.experts.release(e);
  }
  // One expert, the router, and a huge page where each of the three tensors is being read: the
  // kernel may map 2 MiB of the page cache at once.
  const int64_t bound = layer.expert_bytes + layer.other_bytes + 3 * (int64_t{2} << 20);
  EXPECT_LE(most, bound);
  EXPECT_LE(resident_bytes(first), bound);
  ASSERT_GE(kMany * layer.expert_bytes, 3 * bound) << "the bound would hold without release";
}

}  // namespace
}  // namespace switchyard
