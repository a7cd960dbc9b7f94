// Experts, linear layers and whole layers on the GPU against the reference, in every weight format,
// activation format, activation and shape class; the same bits whatever the batch. The bounds are
// the CPU's: this backend's intermediates are f32 too.

#include <gtest/gtest.h>

#include <string>

#include "core/activation_format.h"
#include "gpu/device_tensor.h"
#include "gpu/sorted_batch.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

LayerSpec small_spec(Format format, int64_t experts = 7, int64_t top_k = 3, int64_t hidden = 96,
                     int64_t inner = 80) {
  LayerSpec spec{
      .num_experts = experts, .top_k = top_k, .hidden_size = hidden, .intermediate_size = inner};
  spec = with_format(spec, format);
  spec.activation_format = ActivationFormat::kNone;
  return spec;
}

struct Pair {
  std::unique_ptr<PackedExperts> gpu, reference;
};
Pair pack(const LayerSpec& spec, const test::RandomWeights& weights) {
  return {test::gpu().pack_experts(spec, weights.weights().experts, {.generic_kernels = true}),
          reference_backend().pack_experts(spec, weights.weights().experts, {})};
}

/// run() on both; T tokens, the first `num_routed` of them real (< 0: all).
void expect_same_run(const LayerSpec& spec, const Pair& experts, int64_t num_tokens, DataType type,
                     int64_t num_routed = -1, bool addend = false) {
  SCOPED_TRACE(std::string(to_string(spec.weight_format)) + " x " +
               to_string(spec.activation_format) + ", " + to_string(spec.activation.kind) + ", T " +
               std::to_string(num_tokens) + " E " + std::to_string(spec.num_experts) + " K " +
               std::to_string(spec.top_k) + " H " + std::to_string(spec.hidden_size) + " I " +
               std::to_string(spec.intermediate_size) + " " + to_string(type));
  Random random(static_cast<uint64_t>(num_tokens * 31 + spec.hidden_size));
  const int64_t width = spec.expert_width();
  const Buffer hidden = Buffer::normal(random, type, {num_tokens, width});
  Buffer ids = test::random_topk_ids(random, num_tokens, spec.top_k, spec.num_experts);
  for (int64_t i = 0; i < ids.size(); i += 11) ids.as<int32_t>()[i] = i % 2 == 0 ? -1 : 9999;
  const Buffer weights = test::random_topk_weights(random, num_tokens, spec.top_k);
  const Buffer extra = Buffer::normal(random, DataType::kF32, {num_tokens, width});
  const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(num_routed)});
  Buffer output(type, {num_tokens, width});
  RunExpertsArgs args{
      .hidden_states = hidden, .topk_ids = ids, .topk_weights = weights, .output = output};
  if (addend) args.addend = extra;
  if (num_routed >= 0) args.num_tokens = count;
  RunExpertsArgs on_device = args;
  std::vector<DeviceTensor> tensors;
  for (TensorView* view : {&on_device.output, &on_device.hidden_states, &on_device.topk_ids,
                           &on_device.topk_weights, &on_device.addend, &on_device.num_tokens}) {
    tensors.emplace_back(*view);
    *view = tensors.back().view();
  }
  const test::GuardedMemory host_workspace(
      experts.reference->workspace_bytes(num_tokens, spec.top_k));
  const cuda::DeviceBuffer workspace =
      test::device_workspace(experts.gpu->workspace_bytes(num_tokens, spec.top_k));
  experts.reference->run(args, host_workspace.workspace(), {});
  experts.gpu->run(on_device, test::workspace_of(workspace), {});
  const Buffer got = tensors[0].fetch();
  const int64_t rows = num_routed < 0 ? num_tokens : num_routed;
  EXPECT_TRUE(got.untouched(rows * width, got.size()));
  if (rows == 0) return;
  const auto head = [&](const Buffer& b) {
    return TensorView::contiguous(b.view().data, type, {rows, width});
  };
  EXPECT_TRUE(
      test::within(head(got), head(output), error_bound(spec, BackendKind::kCpu, type), ids));
}

TEST(GpuExperts, EveryWeightFormat) {
  for (const Format format :
       {Format::kF32, Format::kF16, Format::kBf16, Format::kFp8E4m3, Format::kFp8E5m2,
        Format::kInt8, Format::kInt4, Format::kMxfp4, Format::kMxfp8, Format::kNvfp4}) {
    for (const auto& [hidden, inner] : {std::pair{96, 80}, {300, 136}}) {
      const LayerSpec spec = small_spec(format, 7, 3, hidden, inner);
      for (const bool biases : {false, true}) {
        const test::RandomWeights weights(spec, {.seed = 5, .biases = biases});
        const Pair experts = pack(spec, weights);
        for (const int64_t t : {1, 19, 150}) expect_same_run(spec, experts, t, DataType::kF32);
      }
    }
  }
}

TEST(GpuExperts, StoredFormsOfTheSameWeights) {
  struct Form {
    Format format;
    test::MatrixOptions matrix;
  };
  std::vector<Form> forms;
  for (const Format format : {Format::kBf16, Format::kFp8E4m3, Format::kMxfp4, Format::kInt4}) {
    test::MatrixOptions options = test::usual_matrix(format);
    options.transposed = true;
    options.int32_words = element_bits(format) == 4;
    forms.push_back({format, options});
  }
  test::MatrixOptions options = test::usual_matrix(Format::kInt4);
  options.zero_points = true;
  forms.push_back({Format::kInt4, options});
  options.group_index = true;
  forms.push_back({Format::kInt4, options});
  options = test::usual_matrix(Format::kNvfp4);
  options.global_scale = 0.01f;
  forms.push_back({Format::kNvfp4, options});
  options = test::usual_matrix(Format::kInt8);
  options.smooth_scales = true;
  forms.push_back({Format::kInt8, options});
  for (const Form& form : forms) {
    for (const auto storage : {test::GateUpStorage::kSeparate, test::GateUpStorage::kConcatenated,
                               test::GateUpStorage::kInterleaved}) {
      const bool shared_rows = storage != test::GateUpStorage::kSeparate;
      if (shared_rows && (form.matrix.smooth_scales || form.matrix.transposed)) continue;
      const LayerSpec spec = small_spec(form.format, 5, 2, 256, 144);
      const test::RandomWeights weights(spec, {.matrix = form.matrix, .gate_up = storage});
      const Pair experts = pack(spec, weights);
      for (const int64_t t : {3, 70}) expect_same_run(spec, experts, t, DataType::kF32);
    }
  }
}

TEST(GpuExperts, EveryActivationFormat) {
  for (const auto activations : {ActivationFormat::kInt8Block32, ActivationFormat::kInt8PerToken,
                                 ActivationFormat::kInt8PerSlot, ActivationFormat::kFp8PerTensor,
                                 ActivationFormat::kFp8PerToken, ActivationFormat::kFp8Block128,
                                 ActivationFormat::kMxfp8, ActivationFormat::kMxfp4}) {
    for (const Format format : {Format::kBf16, Format::kInt8, Format::kMxfp4}) {
      LayerSpec spec = small_spec(format, 6, 2, 320, 192);
      spec.activation_format = activations;
      test::WeightsOptions options{.matrix = test::usual_matrix(format)};
      options.matrix.smooth_scales = format == Format::kInt8;
      const test::RandomWeights weights(spec, options);
      const Pair experts = pack(spec, weights);
      for (const int64_t t : {1, 40}) expect_same_run(spec, experts, t, DataType::kF32);
      expect_same_run(spec, experts, 40, DataType::kBf16, 23);
    }
  }
}

TEST(GpuExperts, EveryActivationAndWeightPosition) {
  for (int kind = 0; kind <= static_cast<int>(Activation::kRelu2); ++kind) {
    for (const auto position : {WeightPosition::kOutput, WeightPosition::kInput}) {
      LayerSpec spec = small_spec(Format::kBf16);
      spec.activation.kind = static_cast<Activation>(kind);
      spec.weight_position = position;
      const test::RandomWeights weights(spec, {.biases = true});
      const Pair experts = pack(spec, weights);
      for (const DataType type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
        expect_same_run(spec, experts, 33, type, -1, true);
      }
    }
  }
}

TEST(GpuExperts, ShapesTokenCountsAndChunks) {
  struct Shape {
    int64_t experts, top_k, hidden, inner;
  };
  for (const Shape& s : {Shape{1, 1, 8, 8},
                         {4, 4, 33, 65},
                         {64, 6, 72, 24},
                         {9, 9, 64, 63},
                         {2, 1, 9, 5},
                         {256, 8, 128, 32}}) {
    const LayerSpec spec = small_spec(Format::kBf16, s.experts, s.top_k, s.hidden, s.inner);
    const test::RandomWeights weights(spec);
    const Pair experts = pack(spec, weights);
    for (const int64_t t : {0, 1, 2, 16, 17, 64, 65, 129}) {
      expect_same_run(spec, experts, t, DataType::kF32);
    }
    for (const int64_t n : {0, 1, 50, 99}) expect_same_run(spec, experts, 99, DataType::kF32, n);
  }
  const LayerSpec spec = small_spec(Format::kBf16, 8, 8, 40, 24);  // 5000 tokens: three chunks
  const test::RandomWeights weights(spec);
  const Pair experts = pack(spec, weights);
  for (const int64_t n : {-1, 2048, 3000}) {
    expect_same_run(spec, experts, 5000, DataType::kBf16, n, true);
  }
}

TEST(GpuExperts, TokensDoNotDependOnTheirBatch) {
  const LayerSpec spec = small_spec(Format::kMxfp4, 16, 4, 256, 96);
  const test::RandomWeights weights(spec);
  const auto experts = test::gpu().pack_experts(spec, weights.weights().experts, {});
  Random random(9);
  constexpr int64_t kTokens = 300;
  const Buffer hidden = Buffer::normal(random, DataType::kBf16, {kTokens, 256});
  const Buffer ids = test::random_topk_ids(random, kTokens, 4, 16);
  const Buffer topk_weights = test::random_topk_weights(random, kTokens, 4);
  const DeviceTensor x(hidden), i(ids), w(topk_weights);
  const auto run = [&](int64_t begin, int64_t count) {
    const auto rows = [&](const DeviceTensor& all, int64_t columns) {
      const DataType type = all.view().type;
      return TensorView::contiguous(all.view().as<char>() + begin * columns * element_bytes(type),
                                    type, {count, columns});
    };
    const DeviceTensor output(Buffer(DataType::kF32, {count, 256}));
    const cuda::DeviceBuffer workspace = test::device_workspace(experts->workspace_bytes(count, 4));
    experts->run({.hidden_states = rows(x, 256),
                  .topk_ids = rows(i, 4),
                  .topk_weights = rows(w, 4),
                  .output = output},
                 test::workspace_of(workspace), {});
    return output.fetch();
  };
  // Few and many rows per expert may have kernels of their own, whose sums differ in order.
  struct Batches {
    int64_t tokens;
    std::vector<std::pair<int64_t, int64_t>> parts;
  };
  for (const Batches& batches : {Batches{60, {{0, 1}, {7, 1}, {20, 40}, {50, 9}}},
                                 Batches{kTokens, {{0, 150}, {100, 200}, {170, 130}}}}) {
    const Buffer all = run(0, batches.tokens);
    EXPECT_TRUE(same_bits(all, run(0, batches.tokens))) << "the same call twice";
    for (const auto& [begin, count] : batches.parts) {
      const Buffer part = run(begin, count);
      for (int64_t at = 0; at < part.size(); ++at) {
        ASSERT_EQ(part.as<uint32_t>()[at], all.as<uint32_t>()[begin * 256 + at])
            << "token " << begin + at / 256 << " in a batch of " << count;
      }
    }
  }
}

TEST(GpuExperts, EveryTokenToOneExpertWithWeights) {
  LayerSpec spec = small_spec(Format::kFp8E4m3, 1, 1, 256, 200);
  const test::RandomWeights weights(spec);
  const Pair experts = pack(spec, weights);
  Random random(4);
  for (const int64_t t : {1, 20, 90}) {
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {t, 256});
    const Buffer gate = test::random_topk_weights(random, t, 1);
    const Buffer addend = Buffer::normal(random, DataType::kF32, {t, 256});
    Buffer output(DataType::kBf16, {t, 256});
    const DeviceTensor device[] = {DeviceTensor(hidden), DeviceTensor(gate), DeviceTensor(addend),
                                   DeviceTensor(output)};
    const test::GuardedMemory host_workspace(experts.reference->workspace_bytes(t, 1));
    const cuda::DeviceBuffer workspace = test::device_workspace(experts.gpu->workspace_bytes(t, 1));
    experts.reference->run(
        {.hidden_states = hidden, .topk_weights = gate, .addend = addend, .output = output},
        host_workspace.workspace(), {});
    experts.gpu->run({.hidden_states = device[0],
                      .topk_weights = device[1],
                      .addend = device[2],
                      .output = device[3]},
                     test::workspace_of(workspace), {});
    EXPECT_TRUE(test::within(device[3].fetch(), output,
                             error_bound(spec, BackendKind::kCpu, DataType::kBf16)));
  }
}

TEST(GpuExperts, SortedStagesOnTheirOwn) {
  for (const auto activations : {ActivationFormat::kNone, ActivationFormat::kFp8Block128}) {
    for (const int64_t unit : {16, 24, 32, 128}) {
      LayerSpec spec = small_spec(Format::kFp8E4m3, 6, 2, 256, 160);
      spec.activation_format = activations;
      const test::RandomWeights weights(spec, {.biases = true});
      const Pair experts = pack(spec, weights);
      Random random(11);
      constexpr int64_t kTokens = 77;
      const test::SortedBatch s(random, kTokens, 2, 6, unit);
      const DeviceTensor ids(s.ids), row_weights(s.weights), expert_ids(s.expert_ids),
          num_valid(s.num_valid);
      const Buffer hidden = Buffer::normal(random, DataType::kBf16, {kTokens, 256});
      Buffer middle(DataType::kF32, {kTokens, 2, 160});
      Buffer output(DataType::kBf16, {kTokens, 2, 256});
      const DeviceTensor x(hidden), m(middle), y(output);
      const test::GuardedMemory host_workspace(experts.reference->workspace_bytes(kTokens, 2));
      const cuda::DeviceBuffer workspace =
          test::device_workspace(experts.gpu->workspace_bytes(kTokens, 2));
      experts.reference->gate_up(
          {hidden, s.ids, s.expert_ids, s.num_valid, s.weights, unit, 2, middle},
          host_workspace.workspace(), {});
      experts.gpu->gate_up({x, ids, expert_ids, num_valid, row_weights, unit, 2, m},
                           test::workspace_of(workspace), {});
      const ErrorBound bound = error_bound(spec, BackendKind::kCpu, DataType::kBf16);
      EXPECT_TRUE(test::within(m.fetch(), middle, bound, s.ids_in));
      const DeviceTensor exact(middle);  // so that the second stage starts from the same numbers
      experts.reference->down(
          {middle, s.ids, s.expert_ids, s.num_valid, s.weights, unit, 2, output},
          host_workspace.workspace(), {});
      experts.gpu->down({exact, ids, expert_ids, num_valid, row_weights, unit, 2, y},
                        test::workspace_of(workspace), {});
      EXPECT_TRUE(test::within(y.fetch(), output, bound, s.ids_in));
    }
  }
}

TEST(GpuExperts, Dense) {
  for (const Format format : {Format::kBf16, Format::kMxfp4, Format::kInt8}) {
    const LayerSpec spec = small_spec(format, 9, 3, 192, 96);
    const test::RandomWeights weights(spec, {.biases = true});
    const Pair experts = pack(spec, weights);
    for (const int64_t t : {1, 64, 150}) {
      Random random(13);
      const Buffer hidden = Buffer::normal(random, DataType::kBf16, {t, 192});
      Buffer alpha = Buffer::zeros(DataType::kF32, {t, 9});
      for (int64_t i = 0; i < alpha.size(); ++i) {  // expert 4 is used by nobody
        if (random.below(3) == 0 && i % 9 != 4) alpha.set(i, random.uniform());
      }
      for (int64_t i = 0; i < t; ++i) alpha.set(i * 9 + i % 4, 0.5);
      Buffer output(DataType::kBf16, {t, 192});
      const DeviceTensor x(hidden), a(alpha), y(output);
      const test::GuardedMemory host_workspace(experts.reference->workspace_bytes(t, 3));
      const cuda::DeviceBuffer workspace =
          test::device_workspace(experts.gpu->workspace_bytes(t, 3));
      experts.reference->dense({hidden, alpha, output}, host_workspace.workspace(), {});
      experts.gpu->dense({x, a, y}, test::workspace_of(workspace), {});
      EXPECT_TRUE(
          test::within(y.fetch(), output, error_bound(spec, BackendKind::kCpu, DataType::kBf16)));
    }
  }
}

}  // namespace
}  // namespace switchyard
