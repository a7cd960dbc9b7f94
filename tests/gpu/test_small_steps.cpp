// Combine, activate and the RMS norm on the GPU against the reference in double.

#include <gtest/gtest.h>

#include <string>

#include "gpu/device_tensor.h"
#include "reference/steps.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

constexpr DataType kTypes[] = {DataType::kF32, DataType::kBf16, DataType::kF16};

struct CombineCase {
  int64_t num_tokens, top_k, width;
  DataType input = DataType::kBf16, output = DataType::kBf16;
  bool ids = false, mask = false, weights = true, addend = false, residual = false;
  int64_t num_routed = -1;
};

void run_combine(const CombineCase& c) {
  SCOPED_TRACE("T " + std::to_string(c.num_tokens) + " K " + std::to_string(c.top_k) + " H " +
               std::to_string(c.width) + " " + to_string(c.input) + " to " + to_string(c.output));
  constexpr int64_t kExperts = 160;
  Random random(static_cast<uint64_t>(c.num_tokens + c.width));
  Buffer input = Buffer::normal(random, c.input, {c.num_tokens, c.top_k, c.width});
  Buffer ids = test::random_topk_ids(random, c.num_tokens, c.top_k, kExperts);
  const Buffer weights = test::random_topk_weights(random, c.num_tokens, c.top_k);
  const Buffer addend = Buffer::normal(random, c.output, {c.num_tokens, c.width});
  const Buffer residual = Buffer::normal(random, DataType::kBf16, {c.num_tokens, c.width});
  const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(c.num_routed)});
  Buffer mask(DataType::kI32, {kExperts});
  for (int64_t e = 0; e < kExperts; ++e) mask.as<int32_t>()[e] = e % 3 == 0 ? 0 : 1;
  for (int64_t i = 0; i < ids.size() && c.ids; ++i) {
    if (random.below(4) == 0) ids.as<int32_t>()[i] = random.below(2) == 0 ? -1 : 160;
    const int32_t id = ids.as<int32_t>()[i];
    const bool read = id >= 0 && id < kExperts && (!c.mask || mask.as<int32_t>()[id] != 0);
    for (int64_t h = 0; h < c.width && !read; ++h) input.set(i * c.width + h, NAN);
  }
  Buffer output(c.output, {c.num_tokens, c.width});
  ops::CombineArgs args{.expert_output = input, .output = output};
  if (c.ids) args.topk_ids = ids, args.num_experts = kExperts;
  if (c.mask) args.expert_mask = mask;
  if (c.weights) args.topk_weights = weights;
  if (c.addend) args.addend = addend;
  if (c.residual) args.residual = residual;
  if (c.num_routed >= 0) args.num_tokens = count;
  ops::CombineArgs on_device = args;
  std::vector<DeviceTensor> tensors;
  for (TensorView* view :
       {&on_device.output, &on_device.expert_output, &on_device.topk_ids, &on_device.expert_mask,
        &on_device.topk_weights, &on_device.addend, &on_device.residual, &on_device.num_tokens}) {
    tensors.emplace_back(*view);
    *view = tensors.back().view();
  }
  reference::combine(args);
  test::gpu().combine(on_device, test::on_gpu());
  const Buffer got = tensors[0].fetch();
  const int64_t rows = c.num_routed < 0 ? c.num_tokens : c.num_routed;
  EXPECT_TRUE(got.untouched(rows * c.width, got.size()));
  const auto head = [&](const Buffer& b) {
    return TensorView::contiguous(b.view().data, c.output, {rows, c.width});
  };
  EXPECT_TRUE(test::within(head(got), head(output), test::rounding_bound(c.top_k + 2, c.output)));
}

TEST(GpuCombine, EveryTypeAndShape) {
  for (const DataType input : kTypes) {
    for (const DataType output : kTypes) {
      run_combine({.num_tokens = 5,
                   .top_k = 8,
                   .width = 7168,
                   .input = input,
                   .output = output,
                   .residual = true});
      run_combine({.num_tokens = 33,
                   .top_k = 3,
                   .width = 90,
                   .input = input,
                   .output = output,
                   .addend = true});
    }
  }
  for (const int64_t top_k : {1, 2, 4, 5, 6, 9, 16, 127}) {
    run_combine({.num_tokens = 17, .top_k = top_k, .width = 264});
  }
  run_combine({.num_tokens = 0, .top_k = 8, .width = 64});
  run_combine({.num_tokens = 1, .top_k = 1, .width = 1});
}

TEST(GpuCombine, SkippedSlotsAreNotRead) {
  for (const int64_t width : {256, 33}) {
    for (const int64_t n : {-1, 0, 7}) {
      run_combine({.num_tokens = 21, .top_k = 6, .width = width, .ids = true, .num_routed = n});
      run_combine({.num_tokens = 21,
                   .top_k = 6,
                   .width = width,
                   .ids = true,
                   .mask = true,
                   .weights = false,
                   .addend = true,
                   .residual = true,
                   .num_routed = n});
    }
  }
}

TEST(GpuActivate, EveryActivationOrderAndType) {
  Random random(7);
  for (int kind = 0; kind <= static_cast<int>(Activation::kRelu2); ++kind) {
    const ActivationSpec activation{.kind = static_cast<Activation>(kind)};
    for (const GateUpOrder order : {GateUpOrder::kConcatenated, GateUpOrder::kInterleaved}) {
      for (const DataType type : kTypes) {
        SCOPED_TRACE(std::string(to_string(activation.kind)) + " " + to_string(type));
        const int64_t columns = activation.gated() ? 2 * 77 : 77;
        const Buffer input = Buffer::normal(random, type, {19, columns}, 4.0);
        const Buffer bias = Buffer::normal(random, DataType::kBf16, {columns});
        Buffer output(type, {19, 77});
        const DeviceTensor device[] = {DeviceTensor(input), DeviceTensor(bias),
                                       DeviceTensor(output)};
        reference::activate({activation, order, input, bias, output});
        test::gpu().activate({activation, order, device[0], device[1], device[2]}, test::on_gpu());
        EXPECT_TRUE(test::within(device[2].fetch(), output, test::rounding_bound(64, type)));
      }
    }
  }
}

TEST(GpuRmsNorm, EveryTypeAndTokenCount) {
  Random random(8);
  for (const DataType type : kTypes) {
    for (const auto& [rows, cols, n] : {std::array{7, 2048, -1}, {3, 77, 2}, {1, 1, 1}}) {
      const Buffer input = Buffer::normal(random, type, {rows, cols}, 2.0);
      const Buffer scale = Buffer::normal(random, DataType::kBf16, {cols});
      const Buffer count = Buffer::of(DataType::kI32, {1}, {static_cast<double>(n)});
      Buffer output(DataType::kF32, {rows, cols});
      const DeviceTensor device[] = {DeviceTensor(input), DeviceTensor(scale),
                                     DeviceTensor(n < 0 ? TensorView{} : count.view()),
                                     DeviceTensor(output)};
      reference::rms_norm({input, scale, 1e-6f, n < 0 ? TensorView{} : count.view(), output});
      test::gpu().rms_norm({device[0], device[1], 1e-6f, device[2], device[3]}, test::on_gpu());
      const Buffer got = device[3].fetch();
      const int64_t live = n < 0 ? rows : n;
      EXPECT_TRUE(got.untouched(live * cols, got.size()));
      const auto head = [&, c = cols](const Buffer& b) {
        return TensorView::contiguous(b.view().data, DataType::kF32, {live, c});
      };
      EXPECT_TRUE(
          test::within(head(got), head(output), test::rounding_bound(cols, DataType::kF32)));
    }
  }
}

}  // namespace
}  // namespace switchyard
