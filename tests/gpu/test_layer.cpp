// Whole layers through the public API on the GPU: against the reference, captured in a graph that
// is replayed with another token count, and from several streams at once.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gpu/device_tensor.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/random_weights.h"
#include "switchyard/layer.h"
#include "switchyard/models.h"

namespace switchyard {
namespace {

using test::Buffer;
using test::DeviceTensor;
using test::Random;

LayerSpec deepseek_like() {
  LayerSpec spec{.num_experts = 33,
                 .top_k = 5,
                 .hidden_size = 256,
                 .intermediate_size = 96,
                 .routing = {.scoring = Scoring::kSigmoid,
                             .renormalize_epsilon = 1e-20f,
                             .num_groups = 4,
                             .topk_groups = 2,
                             .routed_scaling_factor = 2.5f},
                 .num_fused_shared = 1};
  return spec;
}
LayerSpec qwen_like() {
  return {.num_experts = 16,
          .top_k = 4,
          .hidden_size = 200,
          .intermediate_size = 72,
          .shared = {.intermediate_size = 88, .sigmoid_gate = true}};
}
LayerSpec latent_like() {
  return {.num_experts = 16,
          .top_k = 4,
          .hidden_size = 200,
          .intermediate_size = 72,
          .latent_size = 120,
          .activation = {.kind = Activation::kRelu2}};
}

/// Sizes that tensor cores take.
LayerSpec shared_like() {
  LayerSpec spec = qwen_like();
  spec.hidden_size = 256;
  spec.intermediate_size = 96;
  spec.shared.intermediate_size = 128;
  return spec;
}
LayerSpec latent_shared_like() {
  LayerSpec spec = shared_like();
  spec.latent_size = 128;
  spec.latent_norm_epsilon = 1e-5f;
  return spec;
}

/// A layer on the GPU, the same on the reference, and what a forward of T tokens needs.
struct Layers {
  Layers(const LayerSpec& spec, const test::RandomWeights& weights)
      : gpu(Layer::create(spec, weights.weights(), {.backend = BackendKind::kCuda})),
        reference(Layer::create(spec, weights.weights(), {.backend = BackendKind::kReference})) {}
  Layer gpu, reference;

  Buffer expected(const Buffer& hidden) const {
    const int64_t tokens = hidden.view().extent(0);
    Buffer output(hidden.view().type, {tokens, hidden.view().extent(1)});
    const test::GuardedMemory workspace(reference.workspace_bytes(tokens));
    reference.forward({.hidden_states = hidden, .output = output}, workspace.workspace());
    return output;
  }
};

TEST(GpuLayer, ModelFamilies) {
  for (const LayerSpec& spec :
       {deepseek_like(), qwen_like(), latent_like(), shared_like(), latent_shared_like()}) {
    const test::RandomWeights weights(
        spec, {.biases = false, .logit_bias = true, .selection_bias = spec.num_fused_shared > 0});
    const Layers layers(spec, weights);
    for (const DataType type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
      for (const int64_t t : {1, 33, 700}) {
        SCOPED_TRACE("H " + std::to_string(spec.hidden_size) + " T " + std::to_string(t));
        Random random(21);
        const Buffer hidden = Buffer::normal(random, type, {t, spec.hidden_size});
        const Buffer want = layers.expected(hidden);
        const DeviceTensor x(hidden), y(Buffer(type, {t, spec.hidden_size}));
        const cuda::DeviceBuffer workspace = test::device_workspace(layers.gpu.workspace_bytes(t));
        layers.gpu.forward({.hidden_states = x, .output = y}, test::workspace_of(workspace));
        EXPECT_TRUE(test::within(y.fetch(), want, error_bound(spec, BackendKind::kCuda, type)));
      }
    }
  }
}

/// 8-bit checkpoints reach the matrix unit without naming an activation format.
TEST(GpuLayer, AutoActivationsOfEightBitWeightsRunOnTheMatrixUnit) {
  struct Case {
    Format format;
    ScaleBlock block;
    const char* activations;
  };
  for (const Case& c : {Case{Format::kFp8E4m3, {128, 128}, "fp8_block128"},
                        Case{Format::kFp8E4m3, {1, 0}, "fp8_per_token"},
                        Case{Format::kInt8, {1, 0}, "int8_per_token"}}) {
    LayerSpec spec = deepseek_like();
    spec.intermediate_size = 128;
    spec.weight_format = c.format;
    spec.weight_scale_block = c.block;
    SCOPED_TRACE(c.activations);
    const test::RandomWeights weights(spec, {.selection_bias = true});
    const Layers layers(spec, weights);
    for (const int64_t t : {1, 33, 200}) {
      SCOPED_TRACE("T " + std::to_string(t));
      Random random(22);
      const Buffer hidden = Buffer::normal(random, DataType::kBf16, {t, spec.hidden_size});
      const DeviceTensor x(hidden), y(Buffer(DataType::kBf16, {t, spec.hidden_size}));
      const cuda::DeviceBuffer workspace = test::device_workspace(layers.gpu.workspace_bytes(t));
      layers.gpu.forward({.hidden_states = x, .output = y}, test::workspace_of(workspace));
      EXPECT_TRUE(test::within(y.fetch(), layers.expected(hidden),
                               error_bound(spec, BackendKind::kCuda, DataType::kBf16)));
      if (cuda::device_facts(0).capability != 90) continue;
      const std::string plan = layers.gpu.plan(t).explain();
      EXPECT_NE(plan.find("sm90_"), std::string::npos) << plan;
    }
  }
}

TEST(GpuLayer, CallerMayNameAnExpertTwice) {
  // Generic kernels, and the tuned ones for few and for many rows.
  for (const Format format : {Format::kF32, Format::kBf16, Format::kMxfp4}) {
    LayerSpec spec = with_format(
        {.num_experts = 16, .top_k = 4, .hidden_size = 256, .intermediate_size = 128}, format);
    const test::RandomWeights weights(spec, {.matrix = test::usual_matrix(format)});
    const Layers layers(spec, weights);
    for (const int64_t t : {1, 33, 900}) {
      SCOPED_TRACE(std::string(to_string(format)) + " T " + std::to_string(t));
      Random random(41);
      const Buffer hidden = Buffer::normal(random, DataType::kBf16, {t, spec.hidden_size});
      const Buffer ids = test::random_topk_ids(random, t, spec.top_k, spec.num_experts);
      const Buffer topk_weights = test::random_topk_weights(random, t, spec.top_k);
      for (int64_t token = 0; token < t; token += 3) {
        int32_t* row = ids.as<int32_t>() + token * spec.top_k;
        row[1] = row[3] = row[0];
      }
      const Buffer want(DataType::kBf16, {t, spec.hidden_size});
      const test::GuardedMemory host(layers.reference.workspace_bytes(t));
      layers.reference.forward(
          {.hidden_states = hidden, .output = want, .topk_ids = ids, .topk_weights = topk_weights},
          host.workspace());
      const DeviceTensor x(hidden), y(Buffer(DataType::kBf16, {t, spec.hidden_size})),
          device_ids(ids), device_weights(topk_weights);
      const cuda::DeviceBuffer workspace = test::device_workspace(layers.gpu.workspace_bytes(t));
      layers.gpu.forward(
          {.hidden_states = x, .output = y, .topk_ids = device_ids, .topk_weights = device_weights},
          test::workspace_of(workspace));
      EXPECT_TRUE(
          test::within(y.fetch(), want, error_bound(spec, BackendKind::kCuda, DataType::kBf16)));
    }
  }
}

struct Graph {
  cudaStream_t stream = nullptr;
  cudaGraphExec_t exec = nullptr;

  template <class Body>
  explicit Graph(Body body) {
    cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    cudaGraph_t graph = nullptr;
    cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin capture");
    body(Stream{stream});
    cuda::check(cudaStreamEndCapture(stream, &graph), "end capture");
    cuda::check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    cuda::check(cudaGraphDestroy(graph), "destroy");
  }
  void replay() const {
    cuda::check(cudaGraphLaunch(exec, stream), "launch");
    cuda::check(cudaStreamSynchronize(stream), "synchronize");
  }
  ~Graph() {
    cudaGraphExecDestroy(exec);
    cudaStreamDestroy(stream);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
};

/// Captures a forward of `tokens` tokens once and replays it with other counts and inputs.
void expect_replays(const LayerSpec& spec, const Layers& layers, int64_t tokens) {
  SCOPED_TRACE("T " + std::to_string(tokens));
  Random random(23);
  const int64_t width = spec.hidden_size;
  const DeviceTensor x(Buffer::zeros(DataType::kBf16, {tokens, width}));
  const DeviceTensor y(Buffer(DataType::kBf16, {tokens, width}));
  const DeviceTensor count(Buffer::zeros(DataType::kI32, {1}));
  const cuda::DeviceBuffer workspace = test::device_workspace(layers.gpu.workspace_bytes(tokens));
  const Graph graph([&](Stream stream) {
    layers.gpu.forward({.hidden_states = x, .output = y, .num_tokens = count},
                       test::workspace_of(workspace), stream);
  });
  for (const int64_t n : {tokens, int64_t{0}, int64_t{1}, tokens / 2 + 1, tokens - 1}) {
    SCOPED_TRACE("n " + std::to_string(n));
    const Buffer hidden = Buffer::normal(random, DataType::kBf16, {tokens, width});
    x.upload(hidden);
    y.upload(Buffer(DataType::kBf16, {tokens, width}));
    count.upload(Buffer::of(DataType::kI32, {1}, {static_cast<double>(n)}));
    graph.replay();
    const Buffer got = y.fetch();
    EXPECT_TRUE(got.untouched(n * width, got.size()));
    if (n == 0) continue;
    Buffer live(DataType::kBf16, {n, width});
    std::memcpy(live.view().data, hidden.view().data, static_cast<size_t>(live.bytes()));
    EXPECT_TRUE(test::within(TensorView::contiguous(got.view().data, DataType::kBf16, {n, width}),
                             layers.expected(live),
                             error_bound(spec, BackendKind::kCuda, DataType::kBf16)));
  }
}

TEST(GpuLayer, GraphReplaysWithAnotherTokenCountAndInput) {
  const LayerSpec spec = deepseek_like();
  const test::RandomWeights weights(spec, {.selection_bias = true});
  expect_replays(spec, Layers(spec, weights), 1200);  // two-phase sorting
}

TEST(GpuLayer, TunedKernelsReplayToo) {
  for (const Format format : {Format::kBf16, Format::kFp8E4m3, Format::kInt8, Format::kMxfp4}) {
    SCOPED_TRACE(to_string(format));
    const LayerSpec spec = with_format(
        {.num_experts = 16, .top_k = 4, .hidden_size = 256, .intermediate_size = 128}, format);
    const test::RandomWeights weights(spec, {.matrix = test::usual_matrix(format)});
    const Layers layers(spec, weights);
    for (const int64_t tokens : {64, 900}) expect_replays(spec, layers, tokens);
  }
}

/// Shared experts stored like the routed ones, `count` times as wide.
LayerSpec alike_spec(Format format, int64_t count, bool gated) {
  LayerSpec spec = with_format(
      {.num_experts = 16, .top_k = 4, .hidden_size = 256, .intermediate_size = 128}, format);
  spec.shared = {.intermediate_size = count * spec.intermediate_size, .sigmoid_gate = gated};
  return spec;
}
struct Alike {
  Format format;
  int64_t count;
  bool gated = false;
};
const Alike kAlike[] = {{Format::kF32, 1},     {Format::kBf16, 1},    {Format::kBf16, 2, true},
                        {Format::kFp8E4m3, 1}, {Format::kFp8E4m3, 2}, {Format::kFp8E4m3, 1, true},
                        {Format::kInt8, 1},    {Format::kMxfp4, 1},   {Format::kMxfp4, 2}};

/// With the choice of the layer's own routing or a caller's, which never shows what was fused.
TEST(GpuLayer, SharedExpertsLikeTheRoutedOnesAreFused) {
  for (const auto& [format, count, gated] : kAlike) {
    const LayerSpec spec = alike_spec(format, count, gated);
    const test::RandomWeights weights(
        spec, {.matrix = test::usual_matrix(format), .shared_format = format});
    const Layers layers(spec, weights);
    EXPECT_EQ(layers.gpu.spec(), spec);
    const std::string plan = layers.gpu.plan(8).explain();
    EXPECT_NE(plan.find("shared expert fused with the routed ones"), std::string::npos) << plan;
    const ErrorBound bound = error_bound(spec, BackendKind::kCuda, DataType::kBf16);
    for (const int64_t t : {1, 33, 300}) {
      SCOPED_TRACE(std::string(to_string(format)) + " x " + std::to_string(count) +
                   (gated ? " gated" : "") + " T " + std::to_string(t));
      Random random(43);
      const Buffer hidden = Buffer::normal(random, DataType::kBf16, {t, spec.hidden_size});
      const DeviceTensor x(hidden);
      const cuda::DeviceBuffer workspace = test::device_workspace(layers.gpu.workspace_bytes(t));
      const test::GuardedMemory host(layers.reference.workspace_bytes(t));
      const auto expect_right = [&](const DeviceTensor& y, const Buffer& ids,
                                    const Buffer& topk_weights) {
        const Buffer want(DataType::kBf16, {t, spec.hidden_size});
        layers.reference.forward({.hidden_states = hidden,
                                  .output = want,
                                  .topk_ids = ids,
                                  .topk_weights = topk_weights},
                                 host.workspace());
        EXPECT_TRUE(test::within(y.fetch(), want, bound));
      };
      const DeviceTensor y(Buffer(DataType::kBf16, {t, spec.hidden_size}));
      const DeviceTensor chosen(Buffer(DataType::kI32, {t, spec.top_k}));
      const DeviceTensor weighed(Buffer(DataType::kF32, {t, spec.top_k}));
      layers.gpu.forward(
          {.hidden_states = x, .output = y, .topk_ids_out = chosen, .topk_weights_out = weighed},
          test::workspace_of(workspace));
      const Buffer own = chosen.fetch();
      for (int64_t i = 0; i < own.size(); ++i) {
        ASSERT_GE(own.as<int32_t>()[i], 0);
        ASSERT_LT(own.as<int32_t>()[i], spec.num_experts);
      }
      expect_right(y, own, weighed.fetch());

      // Skipped choices, one just past the experts, and an expert twice.
      const Buffer ids = test::random_topk_ids(random, t, spec.top_k, spec.num_experts);
      const Buffer topk_weights = test::random_topk_weights(random, t, spec.top_k);
      for (int64_t token = 0; token < t; ++token) {
        int32_t* row = ids.as<int32_t>() + token * spec.top_k;
        if (token % 3 == 1) row[0] = -1;
        if (token % 3 == 2) row[1] = static_cast<int32_t>(spec.num_experts);
        if (token % 5 == 4) row[2] = row[3];
      }
      const DeviceTensor given(Buffer(DataType::kBf16, {t, spec.hidden_size}));
      const DeviceTensor device_ids(ids), device_weights(topk_weights);
      layers.gpu.forward({.hidden_states = x,
                          .output = given,
                          .topk_ids = device_ids,
                          .topk_weights = device_weights},
                         test::workspace_of(workspace));
      expect_right(given, ids, topk_weights);
    }
  }
}

TEST(GpuLayer, FusedSharedExpertsReplayWithAnotherTokenCount) {
  for (const Format format : {Format::kBf16, Format::kFp8E4m3}) {
    SCOPED_TRACE(to_string(format));
    const LayerSpec spec = alike_spec(format, 1, format == Format::kBf16);
    const test::RandomWeights weights(
        spec, {.matrix = test::usual_matrix(format), .shared_format = format});
    const Layers layers(spec, weights);
    for (const int64_t tokens : {64, 900}) expect_replays(spec, layers, tokens);
  }
}

TEST(GpuLayer, PlanSaysWhySharedExpertsRunByThemselves) {
  const LayerSpec spec = qwen_like();
  const test::RandomWeights weights(spec);
  const Layer layer = Layer::create(spec, weights.weights(), {.backend = BackendKind::kCuda});
  const std::string text = layer.plan(8).explain();
  EXPECT_NE(text.find("shared experts fused with the routed ones: their intermediate size 88 is "
                      "no multiple of 72"),
            std::string::npos)
      << text;
}

TEST(GpuLayer, StreamsWithTheirOwnWorkspacesDoNotMeet) {
  const LayerSpec spec = qwen_like();
  const test::RandomWeights weights(spec);
  const Layers layers(spec, weights);
  constexpr int kStreams = 4;
  constexpr int64_t kTokens = 700;
  Random random(29);
  std::vector<Buffer> hidden;
  std::vector<DeviceTensor> x, y;
  std::vector<cuda::DeviceBuffer> workspaces;
  std::vector<cudaStream_t> streams(kStreams);
  for (int s = 0; s < kStreams; ++s) {
    hidden.push_back(Buffer::normal(random, DataType::kBf16, {kTokens, spec.hidden_size}));
    x.emplace_back(hidden.back().view());
    y.emplace_back(Buffer(DataType::kBf16, {kTokens, spec.hidden_size}).view());
    workspaces.push_back(test::device_workspace(layers.gpu.workspace_bytes(kTokens)));
    cuda::check(cudaStreamCreateWithFlags(&streams[static_cast<size_t>(s)], cudaStreamNonBlocking),
                "cudaStreamCreate");
  }
  cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  for (int round = 0; round < 10; ++round) {
    for (size_t s = 0; s < kStreams; ++s) {
      layers.gpu.forward({.hidden_states = x[s], .output = y[s]}, test::workspace_of(workspaces[s]),
                         {streams[s]});
    }
  }
  for (size_t s = 0; s < kStreams; ++s) {
    EXPECT_TRUE(test::within(y[s].fetch(), layers.expected(hidden[s]),
                             error_bound(spec, BackendKind::kCuda, DataType::kBf16)));
    cuda::check(cudaStreamDestroy(streams[s]), "cudaStreamDestroy");
  }
}

TEST(GpuLayer, DevicesSideBySide) {
  int num_devices = 0;
  cuda::check(cudaGetDeviceCount(&num_devices), "cudaGetDeviceCount");
  if (num_devices < 2) GTEST_SKIP() << "one GPU here";
  const LayerSpec spec = deepseek_like();
  const test::RandomWeights weights(spec, {.selection_bias = true});
  const Layers layers(spec, weights);
  constexpr int64_t kTokens = 300;
  Random random(37);
  struct OnDevice {
    Layer layer;
    DeviceTensor x, y;
    cuda::DeviceBuffer workspace;
    cudaStream_t stream = nullptr;
  };
  std::vector<Buffer> hidden;
  std::vector<OnDevice> devices;
  for (int d = 0; d < num_devices; ++d) {
    hidden.push_back(Buffer::normal(random, DataType::kBf16, {kTokens, spec.hidden_size}));
    const cuda::DeviceScope scope(d);
    Layer layer =
        Layer::create(spec, weights.weights(), {.backend = BackendKind::kCuda, .device = d});
    const int64_t bytes = layer.workspace_bytes(kTokens);
    devices.push_back({std::move(layer), DeviceTensor(hidden.back()),
                       DeviceTensor(Buffer(DataType::kBf16, {kTokens, spec.hidden_size})),
                       test::device_workspace(bytes)});
    cuda::check(cudaStreamCreateWithFlags(&devices.back().stream, cudaStreamNonBlocking), "stream");
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  // All calls come from a thread whose current device is 0; every layer finds its own.
  for (int round = 0; round < 5; ++round) {
    for (OnDevice& d : devices) {
      d.layer.forward({.hidden_states = d.x, .output = d.y}, test::workspace_of(d.workspace),
                      {d.stream});
    }
  }
  int current = -1;
  cuda::check(cudaGetDevice(&current), "cudaGetDevice");
  EXPECT_EQ(current, 0);
  for (size_t d = 0; d < devices.size(); ++d) {
    SCOPED_TRACE("device " + std::to_string(d));
    const cuda::DeviceScope scope(static_cast<int>(d));
    EXPECT_TRUE(test::within(devices[d].y.fetch(), layers.expected(hidden[d]),
                             error_bound(spec, BackendKind::kCuda, DataType::kBf16)));
    cuda::check(cudaStreamDestroy(devices[d].stream), "cudaStreamDestroy");
  }
}

TEST(GpuLayer, PlanNamesTheDeviceAndTheKernels) {
  const LayerSpec spec = qwen_like();
  const test::RandomWeights weights(spec);
  const Layer layer = Layer::create(spec, weights.weights(), {.backend = BackendKind::kCuda});
  const std::string text = layer.plan(64).explain();
  EXPECT_NE(text.find("grouped_gemm"), std::string::npos) << text;
  EXPECT_NE(text.find(test::gpu().device_name({})), std::string::npos) << text;
}

TEST(GpuLayer, HostMemoryIsRefused) {
  const LayerSpec spec = qwen_like();
  const test::RandomWeights weights(spec);
  const Layer layer = Layer::create(spec, weights.weights(), {.backend = BackendKind::kCuda});
  Random random(31);
  const Buffer hidden = Buffer::normal(random, DataType::kBf16, {3, spec.hidden_size});
  const DeviceTensor x(hidden);
  const Buffer output(DataType::kBf16, {3, spec.hidden_size});
  const DeviceTensor y(output);
  const cuda::DeviceBuffer workspace = test::device_workspace(layer.workspace_bytes(3));
  const test::GuardedMemory host_workspace(layer.workspace_bytes(3));
  const auto refused = [&](const TensorView& in, const TensorView& out, Workspace scratch) {
    try {
      layer.forward({.hidden_states = in, .output = out}, scratch);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument &&
             std::string(error.what()).find("host memory") != std::string::npos;
    }
    return false;
  };
  int reaches_host = 0;
  cuda::check(cudaDeviceGetAttribute(&reaches_host, cudaDevAttrPageableMemoryAccess, 0), "query");
  if (reaches_host != 0) GTEST_SKIP() << "this GPU reads host memory";
  EXPECT_TRUE(refused(hidden, y, test::workspace_of(workspace)));
  EXPECT_TRUE(refused(x, output, test::workspace_of(workspace)));
  EXPECT_TRUE(refused(x, y, host_workspace.workspace()));
  layer.forward({.hidden_states = x, .output = y}, test::workspace_of(workspace));
  EXPECT_EQ(y.fetch().canaries_intact(), true) << "the device still works";
}

TEST(GpuLayer, ErrorsNameTheDevice) {
  EXPECT_NE(test::gpu().why_unavailable(63), "");
  const LayerSpec spec = qwen_like();
  const test::RandomWeights weights(spec);
  try {
    Layer::create(spec, weights.weights(), {.backend = BackendKind::kCuda, .device = 63});
    FAIL() << "a layer on device 63";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("63"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace switchyard
