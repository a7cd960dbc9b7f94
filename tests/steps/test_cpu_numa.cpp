// Panels cut over memory nodes: the topology is made up, since the machines at hand have one node.
#include <fmt/format.h>

#include <atomic>
#include <map>
#include <mutex>

#include "cpu/experts.h"
#include "cpu/huge_buffer.h"
#include "steps/cpu_experts_fixture.h"

namespace switchyard::test {
namespace {

std::mutex placed_mutex;
std::map<int, int64_t> placed;  // bytes by node

void record_place(void*, int64_t bytes, int node) {
  const std::scoped_lock lock(placed_mutex);
  placed[node] += bytes;
}
std::atomic<int> num_asked{0};
int alternating_node() { return num_asked++ % 2; }
int last_of_three() { return 2; }

constexpr cpu::NumaTopology kTwoNodes{
    .num_nodes = 2, .current_node = alternating_node, .place = record_place};
/// All threads on the last node: they must do the others' items too.
constexpr cpu::NumaTopology kLopsided{
    .num_nodes = 3, .current_node = last_of_three, .place = record_place};

TEST(CpuNuma, SameBitsOnAnyNumberOfNodes) {
  Random random(41);
  for (const FormatCase& c :
       {FormatCase{"mxfp4", Format::kMxfp4, {1, 32}}, FormatCase{"bf16", Format::kBf16, {}}}) {
    LayerSpec spec = odd_spec(c.format, c.block);
    const RandomWeights weights(spec);
    for (const int64_t num_tokens : {0, 1, 7, 400}) {  // 200 rows per expert: two chunks
      const ExpertsCall call = random_call(random, spec, num_tokens, DataType::kBf16);
      const auto whole = cpu::make_experts(spec, weights.weights().experts, {});
      const Buffer expected = run_experts(*whole, spec, call);
      for (const cpu::NumaTopology* topology : {&kTwoNodes, &kLopsided}) {
        for (const int num_threads : {1, 2, 5}) {
          SCOPED_TRACE(fmt::format("{}, {} tokens, {} nodes, {} threads", c.name, num_tokens,
                                   topology->num_nodes, num_threads));
          const auto sharded = cpu::make_experts(spec, weights.weights().experts,
                                                 {.num_threads = num_threads}, *topology);
          EXPECT_EQ(sharded->packed_bytes(), whole->packed_bytes());
          EXPECT_TRUE(same_bits(run_experts(*sharded, spec, call), expected));
        }
      }
    }
  }
}

TEST(CpuNuma, EveryNodeHoldsItsShareOfThePanels) {
  LayerSpec spec = odd_spec(Format::kBf16, {});
  spec.hidden_size = 128;        // 4 panels of down
  spec.intermediate_size = 192;  // 6 panels of gate and up
  const RandomWeights weights(spec);
  placed.clear();
  const auto experts = cpu::make_experts(spec, weights.weights().experts, {}, kTwoNodes);
  EXPECT_EQ(placed, (std::map<int, int64_t>{{0, experts->packed_bytes() / 2},
                                            {1, experts->packed_bytes() / 2}}));
}

TEST(CpuNuma, FewerPanelsThanNodes) {
  LayerSpec spec = odd_spec(Format::kInt8, {1, 0});
  spec.hidden_size = 32;
  spec.intermediate_size = 40;
  const RandomWeights weights(spec);
  Random random(42);
  const ExpertsCall call = random_call(random, spec, 9, DataType::kF32);
  const auto whole = cpu::make_experts(spec, weights.weights().experts, {});
  const auto sharded = cpu::make_experts(spec, weights.weights().experts, {}, kLopsided);
  EXPECT_TRUE(same_bits(run_experts(*sharded, spec, call), run_experts(*whole, spec, call)));
}

TEST(CpuNuma, SystemTopologyIsSaneAndPlacedMemoryIsUsable) {
  const cpu::NumaTopology& topology = cpu::system_topology();
  ASSERT_GE(topology.num_nodes, 1);
  ASSERT_LE(topology.num_nodes, cpu::kMaxNodes);
  EXPECT_GE(topology.current_node(), 0);
  const cpu::HugeBuffer buffer(1 << 20);
  topology.place(buffer.data(), buffer.bytes(), topology.num_nodes - 1);
  for (int64_t i = 0; i < buffer.bytes(); ++i) ASSERT_EQ(buffer.data()[i], 0);
  buffer.data()[buffer.bytes() - 1] = 1;
}

}  // namespace
}  // namespace switchyard::test
