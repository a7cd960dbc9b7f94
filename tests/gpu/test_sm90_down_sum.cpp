// Down and its sum in one kernel: the bits of the two kernels that it stands for, whatever the
// ring's slots, the SMs, the shape of the batch and the outputs' type.

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "core/expert_sort.h"
#include "cuda/combine.h"
#include "cuda/sm90/down_sum.h"
#include "cuda/sm90/experts.h"
#include "cuda/sm90/fp4_prefill.h"
#include "cuda/sort.h"
#include "gpu/prefill_agreement.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Operands;
using test::Random;

const Operands kBlocks{Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8Block128};
const Operands kConverted{Format::kMxfp4, {1, 32}, ActivationFormat::kFp8PerToken};
const Operands kOperands[] = {kBlocks,
                              {Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8Block128},
                              {Format::kFp8E4m3, {128, 128}, ActivationFormat::kFp8PerToken},
                              {Format::kFp8E4m3, {1, 0}, ActivationFormat::kFp8PerToken},
                              {Format::kInt8, {1, 0}, ActivationFormat::kInt8PerToken},
                              kConverted};

struct Shape {
  int64_t tokens, top_k, experts;
  int64_t inner, width;      ///< K and output columns
  int64_t num_routed = -1;   ///< on the device; < 0: all
  int64_t only_expert = -1;  ///< >= 0: nobody chooses another
  bool skip_all = false;
  bool addend = false, bias = false, weighted = true, deep = false;
  DataType output = DataType::kBf16;
  int32_t unit = 128;
};

/// One batch's rows behind gate_up, on the device.
class Problem {
 public:
  Problem(const Operands& operands, const Shape& shape) : shape_(shape) {
    Random random(static_cast<uint64_t>(shape.tokens * 7 + shape.width));
    for (int64_t e = 0; e < shape.experts; ++e) {
      const test::OwnedMatrix owned =
          test::random_matrix(random, shape.width, shape.inner, matrix_of(operands));
      if (e == 0) {
        packed_ = cuda::PackedMatrices(
            owned.matrix, 1, false, shape.experts,
            cuda::fragment_order(operands.activations, owned.matrix, owned.matrix, 0));
      }
      packed_.pack(e, {owned.matrix}, {TensorView{}});
    }
    packed_.finish("down");
    converts_ = packed_.rows().fragments.order != FragmentOrder::kRowMajor;
    if (!converts_ && packed_.rows().rows.num_groups > 1) {
      table_ = cuda::DeviceBuffer(cuda::sm90::block_scale_count(packed_.rows(), shape.experts) * 4);
      const DeviceTensor mixed(Buffer::zeros(DataType::kI32, {1}));
      cuda::sm90::block_scale_table(packed_.rows(), shape.experts, table_.as<float>(),
                                    mixed.view().as<int32_t>(), {});
    }
    Buffer ids = test::random_topk_ids(random, shape.tokens, shape.top_k, shape.experts);
    for (int64_t i = 0; i < ids.size(); ++i) {
      int32_t& id = ids.as<int32_t>()[i];
      if (shape.only_expert >= 0) {
        id = i % shape.top_k == 0 ? static_cast<int32_t>(shape.only_expert) : -1;
      }
      if (i % 13 == 5 || shape.skip_all) id = i % 2 == 0 ? -1 : 9999;
    }
    ids_ = DeviceTensor(ids);
    weights_ = DeviceTensor(test::random_topk_weights(random, shape.tokens, shape.top_k));
    addend_ = DeviceTensor(Buffer::normal(random, DataType::kF32, {shape.tokens, shape.width}));
    bias_ = DeviceTensor(Buffer::normal(random, DataType::kF32, {shape.experts, shape.width}));
    count_ = DeviceTensor(Buffer::of(DataType::kI32, {1}, {static_cast<double>(shape.num_routed)}));
    sort();
    const int64_t groups = operands.activations == ActivationFormat::kFp8Block128
                               ? ceil_div<int64_t>(shape.inner, 128)
                               : 1;
    rows_ = DeviceTensor(Buffer::normal(random, DataType::kF8E4m3, {capacity_, shape.inner}));
    scales_ = DeviceTensor(Buffer::normal(random, DataType::kF32, {capacity_, groups}));
    stored_ = {.format = converts_ ? Format::kFp8E4m3 : operands.weights,
               .values = rows_.view().data,
               .row_bytes = shape.inner,
               .scale_kind = cuda::ScaleKind::kF32,
               .scales = scales_.view().data,
               .num_groups = static_cast<int32_t>(groups),
               .group_size =
                   groups > 1 || operands.activations == ActivationFormat::kFp8Block128 ? 128 : 0};
  }

  Buffer in_two() const {
    const auto configs = converts_
                             ? cuda::sm90::fp4_prefill_configs(packed_.rows().fragments)
                             : cuda::sm90::configs_of(
                                   stored_.format, cuda::sm90::scaling_of(stored_, packed_.rows()));
    for (const GroupedGemmConfig& config : configs) {
      if (converts_ ? shape_.unit != config.block_m : shape_.unit % config.block_m != 0) continue;
      const DeviceTensor outputs(
          Buffer(DataType::kBf16, {shape_.tokens, shape_.top_k, shape_.width}));
      const DeviceTensor counter(Buffer::zeros(DataType::kI32, {1}));
      const DeviceTensor sum(Buffer(shape_.output, {shape_.tokens, shape_.width}));
      cuda::sm90::GroupedGemmJob job = down_job();
      job.tile_counter = counter.view().as<uint32_t>();
      job.output = outputs.view().data;
      if (converts_) {
        cuda::sm90::fp4_prefill(job, config, 132, {});
      } else {
        cuda::sm90::grouped_gemm(
            job, config, cuda::sm90::weight_map(packed_.rows(), shape_.experts, config), 132, {});
      }
      cuda::CombineJob combine = sum_job(sum.view());
      combine.expert_output = outputs.view().data;
      combine.topk_ids = ids_.view().as<const int32_t>();
      cuda::combine(combine, {});
      return sum.fetch();
    }
    ADD_FAILURE() << "no tile";
    return {};
  }

  Buffer in_one(int num_slots, int num_sms) const {
    DownSumPlan plan = plan_down_sum({.tokens = shape_.tokens,
                                      .top_k = shape_.top_k,
                                      .experts = shape_.experts,
                                      .sorted_rows = capacity_,
                                      .row_bytes = shape_.inner,
                                      .columns = shape_.width},
                                     num_sms);
    EXPECT_TRUE(plan.fits);
    if (num_slots > 0) plan.num_slots = num_slots;
    const cuda::DeviceBuffer ring = test::device_workspace(plan.ring_bytes());
    const cuda::DeviceBuffer counters(plan.counter_bytes());
    cuda::check(cudaMemset(counters.data(), 0, static_cast<size_t>(counters.bytes())),
                "cudaMemset");
    const DeviceTensor sum(Buffer(shape_.output, {shape_.tokens, shape_.width}));
    cuda::sm90::down_sum({.down = down_job(),
                          .sum = sum_job(sum.view()),
                          .pair_rows = pair_rows_.as<const int32_t>(),
                          .ring = ring.data(),
                          .counters = counters.as<uint32_t>()},
                         plan, num_sms, {});
    return sum.fetch();
  }

 private:
  void sort() {
    capacity_ = sort_capacity(shape_.tokens, shape_.top_k, shape_.experts, shape_.unit);
    sorted_ = cuda::DeviceBuffer(capacity_ * 4);
    sorted_weights_ = cuda::DeviceBuffer(capacity_ * 4);
    blocks_ = cuda::DeviceBuffer(capacity_ * 4);
    valid_ = cuda::DeviceBuffer(8);
    pair_rows_ = cuda::DeviceBuffer(shape_.tokens * shape_.top_k * 4);
    const SortPlan plan = plan_sort(shape_.tokens, shape_.top_k, shape_.experts, shape_.unit);
    const cuda::DeviceBuffer scratch(plan.workspace_bytes + 16);
    cuda::sort({.topk_ids = ids_.view().as<const int32_t>(),
                .topk_weights = weights_.view().as<const int32_t>(),
                .tokens = tokens(),
                .top_k = static_cast<int32_t>(shape_.top_k),
                .num_experts = static_cast<int32_t>(shape_.experts),
                .unit_size = shape_.unit,
                .capacity = static_cast<int32_t>(capacity_),
                .num_blocks = static_cast<int32_t>(capacity_ / shape_.unit),
                .num_valid = 1,
                .sorted_ids = sorted_.as<int32_t>(),
                .sorted_weights = sorted_weights_.as<int32_t>(),
                .sorted_expert_ids = blocks_.as<int32_t>(),
                .num_valid_ids = valid_.as<int32_t>(),
                .reverse_sorted = pair_rows_.as<int32_t>()},
               plan, scratch.data(), 0, {});
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  cuda::TokenCount tokens() const {
    return {.limit = shape_.tokens,
            .on_device = shape_.num_routed < 0 ? nullptr : count_.view().as<const int32_t>()};
  }
  cuda::sm90::GroupedGemmJob down_job() const {
    cuda::sm90::GroupedGemmJob job{
        .sorted = {.ids = sorted_.as<const int32_t>(),
                   .experts = blocks_.as<const int32_t>(),
                   .num_valid = valid_.as<const int32_t>(),
                   .weights = shape_.weighted ? sorted_weights_.as<const float>() : nullptr,
                   .num_blocks = static_cast<int32_t>(capacity_ / shape_.unit),
                   .block_rows = shape_.unit,
                   .top_k = static_cast<int32_t>(shape_.top_k)},
        .source = cuda::sm90::RowSource::kSorted,
        .input = stored_,
        .num_input_rows = capacity_,
        .weights = packed_.rows(),
        .num_experts = shape_.experts,
        .block_scales = table_.as<const float>(),
        .deep_scales = shape_.deep,
        .output_per_pair = true,
        .output_stride = shape_.width};
    if (shape_.bias) job.weights.bias = bias_.view().as<const float>();
    return job;
  }
  cuda::CombineJob sum_job(const TensorView& output) const {
    return {.input_type = DataType::kBf16,
            .num_experts = static_cast<int32_t>(shape_.experts),
            .addend = shape_.addend ? addend_.view().data : nullptr,
            .tokens = tokens(),
            .top_k = static_cast<int32_t>(shape_.top_k),
            .width = shape_.width,
            .output = output.data,
            .output_type = shape_.output};
  }

  Shape shape_;
  bool converts_ = false;
  int64_t capacity_ = 0;
  cuda::PackedMatrices packed_;
  cuda::DeviceBuffer table_, sorted_, sorted_weights_, blocks_, valid_, pair_rows_;
  DeviceTensor ids_, weights_, addend_, bias_, count_, rows_, scales_;
  cuda::StoredRows stored_;
};

void expect_same(const Operands& operands, const Shape& shape) {
  SCOPED_TRACE(std::string(to_string(operands.weights)) + " x " + to_string(operands.activations) +
               ", T " + std::to_string(shape.tokens) + " K " + std::to_string(shape.top_k) + " I " +
               std::to_string(shape.inner) + " H " + std::to_string(shape.width) + " n " +
               std::to_string(shape.num_routed));
  const Problem problem(operands, shape);
  const Buffer want = problem.in_two();
  for (const int num_slots : {0, 2, 3}) {
    EXPECT_TRUE(same_bits(want, problem.in_one(num_slots, 132))) << num_slots << " slots";
  }
}

TEST(GpuSm90DownSum, EveryOperandKindHasTheBitsOfTwoKernels) {
  for (const Operands& operands : kOperands) {
    expect_same(operands, {.tokens = 300, .top_k = 3, .experts = 7, .inner = 256, .width = 640});
    expect_same(operands, {.tokens = 150,
                           .top_k = 8,
                           .experts = 40,
                           .inner = 192,
                           .width = 256,
                           .addend = true,
                           .bias = true,
                           .unit = 64});
    const bool groups = operands.weights == Format::kMxfp4;  // of 32 columns
    expect_same(operands, {.tokens = 77,
                           .top_k = 2,
                           .experts = 5,
                           .inner = groups ? 96 : 112,
                           .width = 128,
                           .weighted = false,
                           .deep = true,
                           .output = DataType::kF32,
                           .unit = groups ? 128 : 192});
  }
}

TEST(GpuSm90DownSum, EmptyOneAndLopsided) {
  for (const int64_t n : {0, 1, 63, 64, 65, 299}) {
    expect_same(
        kBlocks,
        {.tokens = 300, .top_k = 4, .experts = 9, .inner = 256, .width = 1024, .num_routed = n});
  }
  expect_same(kBlocks, {.tokens = 500,
                        .top_k = 2,
                        .experts = 16,
                        .inner = 256,
                        .width = 1152,
                        .only_expert = 9,
                        .addend = true,
                        .output = DataType::kF32});
  for (const int64_t top_k : {6, 9, 12, 13, 29}) {
    expect_same(kBlocks,
                {.tokens = 90, .top_k = top_k, .experts = 32, .inner = 256, .width = 1024});
  }
  expect_same(kConverted, {.tokens = 90, .top_k = 11, .experts = 16, .inner = 256, .width = 1024});
  expect_same(kBlocks, {.tokens = 1, .top_k = 1, .experts = 3, .inner = 128, .width = 64});
  expect_same(kBlocks, {.tokens = 700,
                        .top_k = 2,
                        .experts = 4,
                        .inner = 256,
                        .width = 1024,
                        .skip_all = true,
                        .addend = true});
}

TEST(GpuSm90DownSum, FewSmsAndManySlots) {
  const Problem problem(kOperands[3],
                        {.tokens = 100, .top_k = 2, .experts = 6, .inner = 256, .width = 2048});
  const Buffer want = problem.in_two();
  for (const int num_sms : {1, 2, 5, 132}) {
    for (int num_slots = 2; num_slots <= kDownSumMostSlots; num_slots += 2) {
      EXPECT_TRUE(same_bits(want, problem.in_one(num_slots, num_sms)))
          << num_slots << " slots on " << num_sms << " SMs";
    }
  }
}

bool sums_slabs(const PackedExperts& experts, int64_t tokens, int64_t top_k) {
  Plan plan;
  experts.plan(tokens, top_k, {}, plan);
  for (const PlanStep& step : plan.steps) {
    if (step.kernel == "sm90_down_sum") return true;
  }
  return false;
}

/// A layer that takes this kernel for many tokens.
test::PrefillExperts large_layer(const Operands& operands, int64_t width = 7168) {
  return {test::spec_of(operands, 8, 8, width, 256), operands, false};
}
constexpr int64_t kLargeTokens = 3800;

class GpuSm90DownSumOf : public ::testing::TestWithParam<Operands> {};
INSTANTIATE_TEST_SUITE_P(Some, GpuSm90DownSumOf, ::testing::Values(kBlocks, kConverted),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(GpuSm90DownSumOf, LayersAgreeWithTheReference) {
  const test::PrefillExperts experts = large_layer(GetParam());
  test::expect_agreement(experts, {.tokens = kLargeTokens, .num_routed = 40}, "sm90_down_sum");
  test::expect_agreement(experts,
                         {.tokens = kLargeTokens,
                          .num_routed = 70,
                          .only_expert = 3,
                          .addend = true,
                          .output = DataType::kF32},
                         "sm90_down_sum");
}

/// A batch on the device.
struct LargeBatch {
  const PackedExperts& experts;
  int64_t tokens, top_k, width;
  DeviceTensor hidden, ids, weights;

  explicit LargeBatch(const test::PrefillExperts& layer, int64_t num_tokens = kLargeTokens)
      : experts(*layer.tuned),
        tokens(num_tokens),
        top_k(layer.spec.top_k),
        width(layer.spec.hidden_size) {
    Random random(5);
    hidden = DeviceTensor(Buffer::normal(random, DataType::kBf16, {tokens, width}));
    ids = DeviceTensor(test::random_topk_ids(random, tokens, top_k, layer.spec.num_experts));
    weights = DeviceTensor(test::random_topk_weights(random, tokens, top_k));
  }
  /// `count` of its tokens from `begin`.
  void run(int64_t begin, int64_t count, const TensorView& output,
           const cuda::DeviceBuffer& workspace, Stream stream) const {
    const auto part = [&](const TensorView& view) {
      TensorView rows = view;
      rows.data = view.as<char>() + begin * view.stride(0) * element_bytes(view.type);
      rows.shape[0] = count;
      return rows;
    };
    experts.run({.hidden_states = part(hidden.view()),
                 .topk_ids = part(ids.view()),
                 .topk_weights = part(weights.view()),
                 .output = output},
                test::workspace_of(workspace), stream);
  }
  DeviceTensor output(int64_t count) const {
    return DeviceTensor(Buffer(DataType::kBf16, {count, width}));
  }
  cuda::DeviceBuffer workspace() const {
    return test::device_workspace(experts.workspace_bytes(tokens, top_k));
  }
};

/// The bits of a batch that takes this kernel are those of its parts, which take two.
void expect_bits_of_parts(const LargeBatch& batch, int64_t part) {
  ASSERT_TRUE(sums_slabs(batch.experts, batch.tokens, batch.top_k));
  ASSERT_FALSE(sums_slabs(batch.experts, part, batch.top_k));
  const cuda::DeviceBuffer workspace = batch.workspace();
  const auto run = [&](int64_t begin, int64_t tokens) {
    const DeviceTensor output = batch.output(tokens);
    batch.run(begin, tokens, output, workspace, {});
    return output.fetch();
  };
  const Buffer whole = run(0, batch.tokens);
  for (int64_t begin = 0; begin < batch.tokens; begin += part) {
    const int64_t count = std::min(part, batch.tokens - begin);
    const Buffer want = run(begin, count);
    EXPECT_EQ(std::memcmp(want.as<char>(), whole.as<char>() + begin * batch.width * 2,
                          static_cast<size_t>(count * batch.width * 2)),
              0)
        << "tokens from " << begin;
  }
}

TEST_P(GpuSm90DownSumOf, LayersTakeItForLargeBatches) {
  const test::PrefillExperts layer = large_layer(GetParam());
  const LargeBatch batch(layer);
  expect_bits_of_parts(batch, 512);
  int64_t bytes = 0;
  for (int64_t tokens = 1; tokens < 20000; tokens += 37) {
    const int64_t more = batch.experts.workspace_bytes(tokens, batch.top_k);
    EXPECT_GE(more, bytes) << tokens;  // a workspace serves fewer tokens too
    bytes = more;
  }
}

/// More rows than stay in shared memory: two chunks, each of which takes it.
TEST(GpuSm90DownSum, LayersSplitBatchesThatDoNotFit) {
  const test::PrefillExperts layer = large_layer(kBlocks, 1152);
  expect_bits_of_parts(LargeBatch(layer, 23000), 6000);
}

/// CTAs wait for each other: launches of several streams must not keep each other's away.
TEST(GpuSm90DownSum, StreamsShareTheGpu) {
  const test::PrefillExperts layer = large_layer(kBlocks);
  const LargeBatch batch(layer);
  const DeviceTensor alone = batch.output(kLargeTokens);
  batch.run(0, kLargeTokens, alone, batch.workspace(), {});
  const Buffer want = alone.fetch();
  constexpr int kStreams = 3, kRuns = 4;
  std::vector<cudaStream_t> streams(kStreams);
  std::vector<DeviceTensor> outputs;
  std::vector<cuda::DeviceBuffer> workspaces;
  for (cudaStream_t& stream : streams) {
    cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    outputs.push_back(batch.output(kLargeTokens));
    workspaces.push_back(batch.workspace());
  }
  for (int i = 0; i < kRuns; ++i) {
    for (size_t s = 0; s < kStreams; ++s) {
      batch.run(0, kLargeTokens, outputs[s], workspaces[s], {streams[s]});
    }
  }
  for (size_t s = 0; s < kStreams; ++s) {
    EXPECT_TRUE(same_bits(want, outputs[s].fetch())) << "stream " << s;
    cuda::check(cudaStreamDestroy(streams[s]), "cudaStreamDestroy");
  }
}

}  // namespace
}  // namespace switchyard
