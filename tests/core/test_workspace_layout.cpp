// Regions of a workspace are disjoint, aligned and inside it, whatever the layer needs.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/cost_model.h"
#include "core/workspace_layout.h"
#include "support/random.h"

namespace switchyard {
namespace {

TEST(WorkspaceLayout, RegionsAreDisjointAlignedAndInside) {
  test::Random random(1);
  for (int round = 0; round < 500; ++round) {
    const auto maybe = [&](int64_t most) { return random.below(3) == 0 ? 0 : random.below(most); };
    const LayerWorkspaceSizes sizes{.num_tokens = maybe(5000),
                                    .router_input = maybe(8000),
                                    .router_logits = maybe(1000),
                                    .top_k = 1 + random.below(32),
                                    .shared_weight = random.below(2),
                                    .shared_output = maybe(8000),
                                    .latent = maybe(4000),
                                    .step_bytes = maybe(1 << 20)};
    const LayerWorkspace w = layer_workspace(sizes);
    const std::pair<WorkspaceRegion, int64_t> wanted[] = {{w.router_input, sizes.router_input},
                                                          {w.router_logits, sizes.router_logits},
                                                          {w.topk_ids, sizes.top_k},
                                                          {w.topk_weights, sizes.top_k},
                                                          {w.shared_weight, sizes.shared_weight},
                                                          {w.shared_output, sizes.shared_output},
                                                          {w.latent_input, sizes.latent},
                                                          {w.latent_output, sizes.latent}};
    std::vector<WorkspaceRegion> regions{w.step};
    EXPECT_EQ(w.step.bytes, sizes.step_bytes);
    for (const auto& [region, per_token] : wanted) {
      EXPECT_EQ(region.bytes, sizes.num_tokens * per_token * 4);
      regions.push_back(region);
    }
    std::ranges::sort(regions, {}, [](const WorkspaceRegion& r) {
      return std::pair{r.begin, r.end()};
    });
    for (size_t i = 0; i < regions.size(); ++i) {
      EXPECT_EQ(regions[i].begin % kWorkspaceAlignment, 0);
      EXPECT_LE(regions[i].end(), i + 1 < regions.size() ? regions[i + 1].begin : w.bytes);
    }
    EXPECT_LT(w.bytes, regions.back().end() + kWorkspaceAlignment + 1);
  }
}

TEST(CostModel, DistinctExpertsMatchASimulation) {
  test::Random random(2);
  for (const auto& [num_experts, top_k, num_tokens] :
       {std::tuple{128, 8, 1}, {128, 8, 16}, {32, 4, 8}, {8, 8, 3}, {1, 1, 5}}) {
    double hits = 0;
    constexpr int kRounds = 2000;
    for (int round = 0; round < kRounds; ++round) {
      std::vector<bool> hit(static_cast<size_t>(num_experts));
      for (int t = 0; t < num_tokens; ++t) {
        int chosen = 0;
        std::vector<bool> mine(hit.size());
        while (chosen < top_k) {
          const auto e = static_cast<size_t>(random.below(num_experts));
          if (mine[e]) continue;
          mine[e] = hit[e] = true;
          ++chosen;
        }
      }
      hits += static_cast<double>(std::ranges::count(hit, true));
    }
    EXPECT_NEAR(expected_distinct_experts(num_experts, top_k, num_tokens), hits / kRounds,
                0.01 * num_experts + 1e-9);
  }
  EXPECT_EQ(expected_distinct_experts(8, 2, 0), 0);
}

TEST(CostModel, TheSlowerRoofDecidesAndUnknownLimitsCostNothing) {
  EXPECT_DOUBLE_EQ(predict_us(30e6, 1e6, 30, 100), 1000);
  EXPECT_DOUBLE_EQ(predict_us(30e3, 1e9, 30, 100), 10000);
  EXPECT_DOUBLE_EQ(predict_us(30e6, 1e9, 0, 0), 0);
}

}  // namespace
}  // namespace switchyard
