// The routed experts of a layer beside llama.cpp's or ik_llama.cpp's ggml: same sizes, same
// routing, same number of threads, runs alternating, weights cold by rotation over layers. Build
// and run it with scripts/ggml_compare.sh.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cli/report.h"
#ifdef SWITCHYARD_IK_LLAMA
#include "ggml/ik_llama.h"
#else
#include "ggml/llama.h"
#endif
#include "switchyard/calibrate.h"
#include "switchyard/models.h"
#include "switchyard/switchyard.h"

namespace {

using switchyard::DataType;
using switchyard::Format;
using switchyard::TensorView;

// Until idle threads of either side sleep: libgomp's spin for 300,000 pauses, 4-8 ms on Zen 4.
constexpr auto kRest = std::chrono::milliseconds(30);
constexpr int64_t kColdBytes = int64_t{3} << 29;  // of weights at least, beyond any cache

struct Sizes {
  int64_t experts, top_k, hidden, intermediate;
};

double milliseconds_of(const auto& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

/// One call's input: T tokens that choose K distinct experts uniformly. We take hidden states in
/// bf16, as models have them; ggml takes f32 only, and the same numbers.
struct Call {
  std::vector<float> x, weights;
  std::vector<uint16_t> x_bf16;
  std::vector<int32_t> ids;

  Call(const Sizes& sizes, int64_t tokens, std::mt19937& random)
      : x(static_cast<size_t>(tokens * sizes.hidden)),
        weights(static_cast<size_t>(tokens * sizes.top_k), 1.0f / static_cast<float>(sizes.top_k)) {
    std::normal_distribution<float> normal;
    for (float& value : x) {
      const uint32_t upper = std::bit_cast<uint32_t>(normal(random)) & 0xffff0000u;
      value = std::bit_cast<float>(upper);
      x_bf16.push_back(static_cast<uint16_t>(upper >> 16));
    }
    std::vector<int32_t> all(static_cast<size_t>(sizes.experts));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (size_t k = 0; k < static_cast<size_t>(sizes.top_k); ++k) {
        std::swap(all[k], all[k + random() % (all.size() - k)]);
        ids.push_back(all[k]);
      }
    }
  }
};

/// How a weight is stored, block by block of 32 columns.
struct Storage {
  Format format;
  int64_t value_bytes, scale_bytes;  // per block
};

Storage storage_of(const std::string& name) {
  if (name == "mxfp4") return {Format::kMxfp4, 16, 1};
  if (name == "int8") return {Format::kInt8, 32, 2};
  if (name == "bf16") return {Format::kBf16, 64, 0};
  throw std::runtime_error("format is " + name + "; expected mxfp4, int8 or bf16");
}

/// Small finite values in every format.
void fill(std::vector<uint8_t>& bytes, std::mt19937& random) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = i % 2 != 0 ? 0x3b : static_cast<uint8_t>(random() % 0x78);
  }
}

/// Our layers. All experts are packed from the same stored bytes; packed, each has its own.
class Ours {
 public:
  Ours(const Sizes& sizes, const Storage& storage, int64_t layers, int threads) : sizes_(sizes) {
    std::mt19937 random(1);
    const int64_t blocks = sizes.hidden * sizes.intermediate / 32;
    values_.resize(static_cast<size_t>(blocks * storage.value_bytes));
    scales_.resize(static_cast<size_t>(blocks * storage.scale_bytes),
                   storage.format == Format::kMxfp4 ? 0x78 : 0x20);
    fill(values_, random);
    switchyard::LayerSpec spec{.num_experts = sizes.experts,
                               .top_k = sizes.top_k,
                               .hidden_size = sizes.hidden,
                               .intermediate_size = sizes.intermediate};
    spec.weight_format = storage.format;
    if (storage.scale_bytes != 0) spec.weight_scale_block = {1, 32};
    const auto matrix = [&](int64_t rows, int64_t cols) {
      return this->matrix(storage, rows, cols);
    };
    const switchyard::Weights weights{
        .experts = {.num_experts = sizes.experts, .load = [&](int64_t) {
                      return switchyard::ExpertWeights{
                          .gate = matrix(sizes.intermediate, sizes.hidden),
                          .up = matrix(sizes.intermediate, sizes.hidden),
                          .down = matrix(sizes.hidden, sizes.intermediate)};
                    }}};
    for (int64_t i = 0; i < layers; ++i) {
      layers_.push_back(switchyard::Layer::create(
          spec, weights, {.backend = switchyard::BackendKind::kCpu, .num_threads = threads}));
    }
  }

  void run(size_t layer, const Call& call, int64_t tokens) {
    const int64_t bytes = layers_[layer].workspace_bytes(tokens);
    const auto room = static_cast<size_t>(bytes + switchyard::kWorkspaceAlignment);
    if (workspace_.size() < room) workspace_.resize(room);
    output_.resize(call.x_bf16.size());
    void* data = workspace_.data();
    size_t space = workspace_.size();
    std::align(switchyard::kWorkspaceAlignment, static_cast<size_t>(bytes), data, space);
    const auto rows = [tokens](const auto& from, DataType type) {
      return TensorView::contiguous(const_cast<void*>(static_cast<const void*>(from.data())), type,
                                    {tokens, std::ssize(from) / tokens});
    };
    layers_[layer].forward({.hidden_states = rows(call.x_bf16, DataType::kBf16),
                            .output = rows(output_, DataType::kBf16),
                            .topk_ids = rows(call.ids, DataType::kI32),
                            .topk_weights = rows(call.weights, DataType::kF32)},
                           {.data = data, .bytes = bytes});
  }

 private:
  switchyard::WeightMatrix matrix(const Storage& storage, int64_t rows, int64_t cols) {
    switchyard::WeightMatrix m{.format = storage.format, .rows = rows, .cols = cols};
    const DataType type = storage.format == Format::kMxfp4  ? DataType::kU8
                          : storage.format == Format::kInt8 ? DataType::kI8
                                                            : DataType::kBf16;
    const int64_t units = storage.format == Format::kMxfp4 ? cols / 2 : cols;
    m.values = TensorView::contiguous(values_.data(), type, {rows, units});
    if (storage.scale_bytes != 0) {
      m.scales = TensorView::contiguous(scales_.data(),
                                        storage.scale_bytes == 1 ? DataType::kU8 : DataType::kF16,
                                        {rows, cols / 32});
      m.scale_block = {1, 32};
    }
    return m;
  }

  Sizes sizes_;
  std::vector<uint8_t> values_, scales_;
  std::vector<std::byte> workspace_;
  std::vector<uint16_t> output_;
  std::vector<switchyard::Layer> layers_;
};

/// The other side: its weights, and its graph for each call.
class Peer {
 public:
  Peer(const Sizes& sizes, const std::string& format, int64_t layers, int threads)
      : sizes_(sizes), backend_(peer::make_backend(threads)) {
    context_ = ggml_init({.mem_size = ggml_tensor_overhead() * static_cast<size_t>(3 * layers + 8),
                          .mem_buffer = nullptr,
                          .no_alloc = true});
    const ggml_type type = peer::weight_type(format);
    for (int64_t i = 0; i < layers; ++i) {
      const auto tensor = [&](int64_t cols, int64_t rows) {
        return ggml_new_tensor_3d(context_, type, cols, rows, sizes.experts);
      };
      weights_.push_back({tensor(sizes.hidden, sizes.intermediate),
                          tensor(sizes.hidden, sizes.intermediate),
                          tensor(sizes.intermediate, sizes.hidden)});
    }
    ggml_backend_buffer_type_t memory = peer::weight_buffer(backend_, type);
    weights_name_ = fmt::format("{} in {}", ggml_type_name(type), ggml_backend_buft_name(memory));
    buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(context_, memory);
    if (buffer_ == nullptr) throw std::runtime_error("ggml has no memory for the weights");
    std::mt19937 random(1);
    std::vector<uint8_t> bytes(ggml_nbytes(weights_[0][0]));
    fill(bytes, random);
    for (const auto& layer : weights_) {
      for (ggml_tensor* tensor : layer) {
        ggml_backend_tensor_set(tensor, bytes.data(), 0, ggml_nbytes(tensor));
      }
    }
  }
  ~Peer() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(context_);
    ggml_backend_free(backend_);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  const std::string& weights_name() const { return weights_name_; }

  /// Milliseconds of the graph alone; building it and copying inputs are not counted.
  double run(size_t layer, const Call& call, int64_t tokens) {
    ggml_context* context =
        ggml_init({.mem_size = size_t{4} << 20, .mem_buffer = nullptr, .no_alloc = true});
    ggml_tensor* x = ggml_new_tensor_3d(context, GGML_TYPE_F32, sizes_.hidden, 1, tokens);
    ggml_tensor* ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, sizes_.top_k, tokens);
    ggml_tensor* slots = ggml_new_tensor_3d(context, GGML_TYPE_F32, 1, sizes_.top_k, tokens);
    const auto& [gate, up, down] = weights_[layer];
    ggml_cgraph* graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, peer::experts(context, gate, up, down, x, ids, slots));
    ggml_backend_buffer_t memory = ggml_backend_alloc_ctx_tensors(context, backend_);
    const auto set = [](ggml_tensor* tensor, const auto& from) {
      ggml_backend_tensor_set(tensor, from.data(), 0, from.size() * sizeof(from[0]));
    };
    set(x, call.x);
    set(ids, call.ids);
    set(slots, call.weights);
    const double ms = milliseconds_of([&] { ggml_backend_graph_compute(backend_, graph); });
    ggml_backend_buffer_free(memory);
    ggml_free(context);
    return ms;
  }

 private:
  Sizes sizes_;
  ggml_backend_t backend_ = nullptr;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  std::string weights_name_;
  std::vector<std::array<ggml_tensor*, 3>> weights_;
};

/// Median milliseconds of both sides on the same calls, side by side in time.
struct Row {
  int64_t tokens = 0;
  double ours_ms = 0, peer_ms = 0;
};

/// A side runs a few calls in a row, each on other weights, and all but the first count: layers
/// follow each other in an engine too, so threads are awake and the other side's are at rest.
Row compare(Ours& ours, Peer& theirs, const Sizes& sizes, int64_t tokens, int64_t layers,
            int rounds, std::mt19937& random) {
  std::vector<double> own, other;
  const size_t calls_in_a_row = tokens <= 16 ? 8 : 2;
  size_t next = 0;
  for (int round = -1; round < rounds; ++round) {  // the first is warm-up
    std::vector<Call> calls;
    while (calls.size() < calls_in_a_row) calls.emplace_back(sizes, tokens, random);
    const auto measure = [&](std::vector<double>& times, const auto& run) {
      for (size_t i = 0; i < calls.size(); ++i) {
        const double ms = run((next + i) % static_cast<size_t>(layers), calls[i]);
        if (i > 0 && round >= 0) times.push_back(ms);
      }
      std::this_thread::sleep_for(kRest);
    };
    measure(own, [&](size_t layer, const Call& call) {
      return milliseconds_of([&] { ours.run(layer, call, tokens); });
    });
    measure(other, [&](size_t layer, const Call& call) { return theirs.run(layer, call, tokens); });
    next += calls.size();
  }
  return {tokens, median(own), median(other)};
}

}  // namespace

int main(int argc, char** argv) try {
  std::string model = "qwen3-30b-a3b", format = "mxfp4", json;
  std::vector<int64_t> token_counts{1, 16, 64, 256, 1024};
  int threads = 0, rounds = 9;
  CLI::App app{"Routed experts beside llama.cpp's or ik_llama.cpp's ggml, runs alternating"};
  app.add_option("--model", model, "shape, see switchyard models");
  app.add_option("--format", format, "mxfp4, int8 (Q8_0) or bf16");
  app.add_option("--tokens", token_counts)->delimiter(',');
  app.add_option("--threads", threads, "0 = all cores");
  app.add_option("--rounds", rounds);
  app.add_option("--json", json, "also write everything to this file");
  CLI11_PARSE(app, argc, argv);

  const switchyard::LayerSpec spec = switchyard::model_shape(model).spec;
  const Sizes sizes{spec.num_experts, spec.top_k, spec.hidden_size, spec.intermediate_size};
  const Storage storage = storage_of(format);
  const int64_t layer_bytes = 3 * sizes.experts * sizes.hidden * sizes.intermediate / 32 *
                              (storage.value_bytes + storage.scale_bytes);
  const int64_t layers = std::max<int64_t>(2, (kColdBytes + layer_bytes - 1) / layer_bytes);
  const auto before = switchyard::measure_limits(switchyard::BackendKind::kCpu, threads);
  Ours ours(sizes, storage, layers, before.num_threads);
  Peer theirs(sizes, format, layers, before.num_threads);
  fmt::print("{} {}, {} threads, {} layers; peer: {}, {}\n", model, format, before.num_threads,
             layers, peer::name(), theirs.weights_name());
  fmt::print("{:>7} {:>12} {:>12} {:>8}\n", "tokens", "ours ms", "peer ms", "ratio");
  std::mt19937 random(2);
  switchyard::cli::Json report = switchyard::cli::new_report("bench_ggml");
  for (const int64_t tokens : token_counts) {
    const Row row = compare(ours, theirs, sizes, tokens, layers, rounds, random);
    fmt::print("{:>7} {:>12.3f} {:>12.3f} {:>8.2f}\n", row.tokens, row.ours_ms, row.peer_ms,
               row.peer_ms / row.ours_ms);
    report["results"].push_back(
        {{"tokens", row.tokens}, {"ours_ms", row.ours_ms}, {"peer_ms", row.peer_ms}});
  }
  const auto after = switchyard::measure_limits(switchyard::BackendKind::kCpu, threads);
  fmt::print("read GB/s before {:.1f}, after {:.1f}\n", before.read_gbps, after.read_gbps);
  if (json.empty()) return 0;
  report["machine"] = switchyard::cli::to_json(switchyard::cli::this_machine());
  report["peer"] = peer::name();
  report["peer_weights"] = theirs.weights_name();
  report["model"] = model;
  report["title"] = switchyard::model_shape(model).title;
  report["format"] = format;
  report["rounds"] = rounds;
  report["limits"] = {{"before", switchyard::cli::to_json(before)},
                      {"after", switchyard::cli::to_json(after)}};
  switchyard::cli::save_report(json, report);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
