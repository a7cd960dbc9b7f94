// Times the GPU steps beside the limit measured in the same run: a plain kernel that moves the same
// bytes. Writes one JSON record; prints the same as a table.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "core/expert_sort.h"
#include "core/scale_layout.h"
#include "cuda/route_sort.h"
#include "gpu/timing.h"
#include "switchyard/models.h"

namespace switchyard::bench {
namespace {

using cuda::DeviceBuffer;
using nlohmann::json;

/// Device tensors of every copy of a step live in one allocation each.
DeviceBuffer random_memory(int64_t bytes, bool bf16, uint64_t seed) {
  DeviceBuffer memory(align_up<int64_t>(bytes, 256));
  fill_random(memory.data(), memory.bytes(), bf16, seed, nullptr);
  return memory;
}

class Report {
 public:
  void add(const std::string& step, const std::string& what, int64_t tokens, const Timing& timing,
           int64_t bytes, double limit_us, const json& extra = json::object()) {
    const double gbps = static_cast<double>(bytes) / timing.chain_us * 1e-3;
    json row{{"step", step},
             {"case", what},
             {"tokens", tokens},
             {"us", timing.chain_us},
             {"single_us", timing.single_us},
             {"bytes", bytes},
             {"gbps", gbps},
             {"limit_us", limit_us},
             {"share_of_limit", limit_us / timing.chain_us}};
    row.update(extra);
    rows_.push_back(row);
    fmt::print(
        "{:10} {:44} {:6} {:9.2f} us {:8.2f} single {:9.3f} MB {:7.0f} GB/s limit {:8.2f} us "
        "{:4.0f} %\n",
        step, what, tokens, timing.chain_us, timing.single_us, static_cast<double>(bytes) * 1e-6,
        gbps, limit_us, 100 * limit_us / timing.chain_us);
    std::fflush(stdout);
  }
  const json& rows() const { return rows_; }

 private:
  json rows_ = json::array();
};

/// [T, K] distinct ids, uniform.
std::vector<int32_t> random_ids(int64_t tokens, int64_t top_k, int64_t experts, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(tokens * top_k));
  std::vector<int32_t> all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), 0);
  for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
    for (size_t k = 0; k < static_cast<size_t>(top_k); ++k) {
      const size_t other = k + random() % (all.size() - k);
      std::swap(all[k], all[other]);
      ids[t * static_cast<size_t>(top_k) + k] = all[k];
    }
  }
  return ids;
}

struct SortShape {
  const char* model;
  int64_t experts, top_k, unit;
};

/// Every copy of one sort: inputs, outputs and scratch, each strided in one allocation.
class SortBench {
 public:
  SortBench(const SortShape& shape, int64_t tokens, int64_t zeroed_bytes, const SortPlan& plan)
      : shape_(shape),
        tokens_(tokens),
        plan_(plan),
        capacity_(sort_capacity(tokens, shape.top_k, shape.experts, shape.unit)),
        zeroed_bytes_(zeroed_bytes) {
    pairs_ = tokens * shape.top_k;
    copies_ = rotation(bytes() + zeroed_bytes);
    for (DeviceBuffer* words : {&ids_, &weights_}) *words = DeviceBuffer(copies_ * pairs_ * 4);
    for (DeviceBuffer* words : {&sorted_, &sorted_weights_, &experts_}) {
      *words = DeviceBuffer(copies_ * capacity_ * 4);
    }
    valid_ = DeviceBuffer(copies_ * 8);
    scratch_ = DeviceBuffer(std::max<int64_t>(plan.workspace_bytes, 1));
    zeroed_ = DeviceBuffer(copies_ * zeroed_bytes);
    for (int i = 0; i < copies_; ++i) {
      const auto ids = random_ids(tokens, shape.top_k, shape.experts, static_cast<uint64_t>(i) + 1);
      ids_.copy_from_host(i * pairs_ * 4, ids.data(), pairs_ * 4);
    }
    fill_random(weights_.data(), weights_.bytes(), false, 5, nullptr);
    cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  /// Ids and weights in; ids, weights and blocks out.
  int64_t bytes() const { return pairs_ * 8 + capacity_ * 8 + capacity_ / shape_.unit * 4; }
  Timing time() const {
    return time_graph([this](int i, cudaStream_t stream) { launch(i, stream); }, copies_);
  }

 private:
  void launch(int i, cudaStream_t stream) const {
    cuda::SortJob job{
        .topk_ids = ids_.as<int32_t>() + i * pairs_,
        .topk_weights = weights_.as<int32_t>() + i * pairs_,
        .tokens = {.limit = tokens_},
        .top_k = static_cast<int32_t>(shape_.top_k),
        .num_experts = static_cast<int32_t>(shape_.experts),
        .unit_size = static_cast<int32_t>(shape_.unit),
        .capacity = static_cast<int32_t>(capacity_),
        .num_blocks = static_cast<int32_t>(capacity_ / shape_.unit),
        .num_valid = 2,
        .sorted_ids = sorted_.as<int32_t>() + i * capacity_,
        .sorted_weights = sorted_weights_.as<int32_t>() + i * capacity_,
        .sorted_expert_ids = experts_.as<int32_t>() + i * capacity_,
        .num_valid_ids = valid_.as<int32_t>() + i * 2,
        .zeroed = zeroed_bytes_ > 0 ? zeroed_.as<char>() + i * zeroed_bytes_ : nullptr,
        .zeroed_bytes = zeroed_bytes_};
    cuda::sort(job, plan_, scratch_.data(), 0, {stream});
  }

  SortShape shape_;
  int64_t tokens_;
  SortPlan plan_;
  int64_t capacity_, zeroed_bytes_, pairs_ = 0;
  int copies_ = 0;
  DeviceBuffer ids_, weights_, sorted_, sorted_weights_, experts_, valid_, scratch_, zeroed_;
};

void bench_sort(Report& report, Limits& limits, bool both_paths) {
  constexpr int64_t kMostOneShotPairs = 16384;
  const SortShape shapes[] = {{"deepseek-r1", 257, 9, 32},
                              {"deepseek-v4", 385, 7, 32},
                              {"qwen3-235b", 128, 4, 128},
                              {"kimi-k3", 896, 16, 32}};
  for (const SortShape& shape : shapes) {
    for (int64_t tokens = 1; tokens <= 16384; tokens *= 2) {
      const SortPlan chosen = plan_sort(tokens, shape.top_k, shape.experts, shape.unit);
      const auto run = [&](const SortPlan& plan, int64_t zeroed, const char* note) {
        const SortBench bench(shape, tokens, zeroed, plan);
        const double limit = zeroed > 0 ? limits.write_us(zeroed) : limits.copy_us(bench.bytes());
        report.add("sort",
                   fmt::format("{} E{} K{} unit {}{}", shape.model, shape.experts, shape.top_k,
                               shape.unit, note),
                   tokens, bench.time(), zeroed > 0 ? zeroed : bench.bytes(), limit,
                   {{"path", plan.path == SortPath::kChunked ? "chunked" : "one-shot"},
                    {"zeroing", zeroed > 0}});
      };
      run(chosen, 0, "");
      run(chosen, tokens * 4096 * 2, ", zeroing 4096 bf16");
      if (!both_paths || tokens * shape.top_k > kMostOneShotPairs) continue;
      const bool one_shot = chosen.path != SortPath::kChunked;
      const SortPlan other = plan_sort(tokens, shape.top_k, shape.experts, shape.unit,
                                       one_shot ? 0 : kMostOneShotPairs);
      if (other.path != chosen.path) run(other, 0, one_shot ? ", chunked" : ", one-shot");
    }
  }
}

void bench_route(Report& report, Limits& limits) {
  struct Method {
    const char* name;
    RoutingSpec spec;
    int64_t experts, top_k;
    DataType type;
    bool bias;
  };
  const Method methods[] = {{"softmax E256 K8 f32", {}, 256, 8, DataType::kF32, false},
                            {"softmax E128 K4 bf16", {}, 128, 4, DataType::kBf16, false},
                            {"sigmoid, bias, 8 groups E256 K8 f32",
                             {.scoring = Scoring::kSigmoid, .num_groups = 8, .topk_groups = 4},
                             256,
                             8,
                             DataType::kF32,
                             true},
                            {"softmax E512 K10 bf16", {}, 512, 10, DataType::kBf16, false}};
  for (const Method& m : methods) {
    for (const int64_t tokens : {1, 16, 64, 1024, 4096, 16384}) {
      const int64_t logit_bytes = tokens * m.experts * element_bytes(m.type);
      const int64_t out = tokens * m.top_k;
      const int copies = rotation(logit_bytes);
      const DeviceBuffer logits = random_memory(copies * logit_bytes, m.type == DataType::kBf16, 3);
      const DeviceBuffer bias = random_memory(m.experts * 4, false, 4);
      const DeviceBuffer ids(copies * out * 4), weights(copies * out * 4);
      const Launch launch = [&](int i, cudaStream_t stream) {
        ops::RouteArgs args{.router_logits = TensorView::contiguous(
                                logits.as<char>() + i * logit_bytes, m.type, {tokens, m.experts}),
                            .topk_ids = TensorView::contiguous(ids.as<int32_t>() + i * out,
                                                               DataType::kI32, {tokens, m.top_k}),
                            .topk_weights = TensorView::contiguous(
                                weights.as<float>() + i * out, DataType::kF32, {tokens, m.top_k})};
        if (m.bias) {
          args.selection_bias = TensorView::contiguous(bias.data(), DataType::kF32, {m.experts});
        }
        cuda_backend()->route({.spec = m.spec, .args = args},
                              {.backend = BackendKind::kCuda, .stream = {stream}});
      };
      const int64_t bytes = logit_bytes + out * 8;
      report.add("route", m.name, tokens, time_graph(launch, copies), bytes, limits.read_us(bytes));
    }
  }
}

struct RouteSortModel {
  const char* name;
  RoutingSpec spec;
  int64_t experts, top_k;
  bool bias;
};
constexpr int64_t kRouteSortUnit = 8;
constexpr int kRouteSortCopies = 40;

/// Routing and sorting of one batch, in one launch or in two.
Timing time_route_sort(const RouteSortModel& m, int64_t tokens, bool fused) {
  constexpr int kCopies = kRouteSortCopies;
  const int64_t pairs = tokens * m.top_k;
  const int64_t rows = sort_capacity(tokens, m.top_k, m.experts, kRouteSortUnit);
  const DeviceBuffer logits = random_memory(kCopies * tokens * m.experts * 4, false, 3);
  const DeviceBuffer bias = random_memory(m.experts * 4, false, 4);
  const DeviceBuffer ids(kCopies * pairs * 4), weights(kCopies * pairs * 4);
  const DeviceBuffer sorted(kCopies * rows * 4), sorted_weights(kCopies * rows * 4);
  const DeviceBuffer experts(kCopies * rows * 4), valid(kCopies * 8);
  const Launch launch = [&](int i, cudaStream_t stream) {
    const auto pair_view = [&](const DeviceBuffer& memory, DataType type) {
      return TensorView::contiguous(memory.as<int32_t>() + i * pairs, type, {tokens, m.top_k});
    };
    RouteRequest request{.spec = m.spec,
                         .args = {.router_logits = TensorView::contiguous(
                                      logits.as<float>() + i * tokens * m.experts, DataType::kF32,
                                      {tokens, m.experts}),
                                  .topk_ids = pair_view(ids, DataType::kI32),
                                  .topk_weights = pair_view(weights, DataType::kF32)}};
    if (m.bias) {
      request.args.selection_bias =
          TensorView::contiguous(bias.data(), DataType::kF32, {m.experts});
    }
    if (!fused) {
      cuda_backend()->route(request, {.backend = BackendKind::kCuda, .stream = {stream}});
    }
    cuda::route_and_sort(fused ? &request : nullptr,
                         {.topk_ids = ids.as<int32_t>() + i * pairs,
                          .topk_weights = weights.as<int32_t>() + i * pairs,
                          .tokens = {.limit = tokens},
                          .top_k = static_cast<int32_t>(m.top_k),
                          .num_experts = static_cast<int32_t>(m.experts),
                          .unit_size = kRouteSortUnit,
                          .capacity = static_cast<int32_t>(rows),
                          .num_blocks = static_cast<int32_t>(rows / kRouteSortUnit),
                          .num_valid = 1,
                          .sorted_ids = sorted.as<int32_t>() + i * rows,
                          .sorted_weights = sorted_weights.as<int32_t>() + i * rows,
                          .sorted_expert_ids = experts.as<int32_t>() + i * rows,
                          .num_valid_ids = valid.as<int32_t>() + i * 2},
                         nullptr, 0, {stream});
  };
  return time_graph(launch, kCopies);
}

/// What a decode layer begins with; lists in blocks of 8 rows.
void bench_route_sort(Report& report, Limits& limits) {
  const RouteSortModel models[] = {
      {"softmax E256 K8", {}, 256, 8, false},
      {"softmax E128 K4", {}, 128, 4, false},
      {"sigmoid, bias, 8 groups E256 K8",
       {.scoring = Scoring::kSigmoid, .num_groups = 8, .topk_groups = 4},
       256,
       8,
       true},
      {"sigmoid, bias E384 K8", {.scoring = Scoring::kSigmoid}, 384, 8, true},
      {"softmax E896 K16", {}, 896, 16, false}};
  for (const RouteSortModel& m : models) {
    for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64}) {
      const int64_t rows = sort_capacity(tokens, m.top_k, m.experts, kRouteSortUnit);
      const int64_t bytes = tokens * m.experts * 4 + tokens * m.top_k * 8 + rows * 8;
      const double limit = limits.copy_us(bytes);
      report.add("route+sort", m.name, tokens, time_route_sort(m, tokens, true), bytes, limit);
      report.add("route+sort", fmt::format("{}, route, then sort", m.name), tokens,
                 time_route_sort(m, tokens, false), bytes, limit);
    }
  }
}

void bench_quantize(Report& report, Limits& limits) {
  struct Target {
    const char* name;
    Format format;
    ScaleBlock block;
    DataType scale_type;
  };
  const Target targets[] = {{"bf16 to fp8 1x128", Format::kFp8E4m3, {1, 128}, DataType::kF32},
                            {"bf16 to fp8 per token", Format::kFp8E4m3, {1, 0}, DataType::kF32},
                            {"bf16 to fp8 per tensor", Format::kFp8E4m3, {0, 0}, DataType::kF32},
                            {"bf16 to int8 per token", Format::kInt8, {1, 0}, DataType::kF32},
                            {"bf16 to int8 1x32", Format::kInt8, {1, 32}, DataType::kF32},
                            {"bf16 to mxfp8", Format::kMxfp8, {1, 32}, DataType::kF8E8m0},
                            {"bf16 to mxfp4", Format::kMxfp4, {1, 32}, DataType::kF8E8m0},
                            {"bf16 to nvfp4", Format::kNvfp4, {1, 16}, DataType::kF8E4m3}};
  constexpr int64_t kCols = 7168;
  for (const Target& t : targets) {
    for (const int64_t rows : {1, 64, 1024, 16384}) {
      const bool nibbles = element_bits(t.format) == 4;
      const int64_t in = rows * kCols * 2;
      const int64_t values = nibbles ? rows * kCols / 2 : rows * kCols;
      const int64_t num_scales = scale_rows(t.block, rows) * scale_cols(t.block, kCols);
      const int64_t scale_bytes = align_up<int64_t>(num_scales * element_bytes(t.scale_type), 256);
      const int copies = rotation(in + values);
      const DeviceBuffer input = random_memory(copies * in, true, 6);
      const DeviceBuffer codes(copies * values), scales(copies * scale_bytes);
      const DataType code_type = nibbles                     ? DataType::kU8
                                 : t.format == Format::kInt8 ? DataType::kI8
                                                             : DataType::kF8E4m3;
      const Launch launch = [&](int i, cudaStream_t stream) {
        cuda_backend()->quantize(
            {.input =
                 TensorView::contiguous(input.as<char>() + i * in, DataType::kBf16, {rows, kCols}),
             .format = t.format,
             .scale_block = t.block,
             .values = TensorView::contiguous(codes.as<char>() + i * values, code_type,
                                              {rows, values / rows}),
             .scales =
                 TensorView::contiguous(scales.as<char>() + i * scale_bytes, t.scale_type,
                                        {scale_rows(t.block, rows), scale_cols(t.block, kCols)})},
            {.backend = BackendKind::kCuda, .stream = {stream}});
      };
      // One scale needs all values before the first code. What the GPU's memories on the chip do
      // not hold meanwhile is read again; at 14 MB they hold it.
      constexpr int64_t kHeldBytes = 50'000'000;
      const bool twice = t.block.rows == 0 && in > kHeldBytes;
      const int64_t once = in + values + num_scales * element_bytes(t.scale_type);
      const double limit = limits.copy_us(once) + (twice ? limits.read_us(in) : 0.0);
      report.add("quantize", t.name, rows, time_graph(launch, copies), once + (twice ? in : 0),
                 limit);
    }
  }
}

/// The tail of a gate_up that was split along K.
void bench_activate_quantize(Report& report, Limits& limits) {
  constexpr int64_t kWidth = 2048;
  struct Target {
    const char* name;
    int64_t parts;
    Format format;
    ScaleBlock block;
    DataType scale_type;
  };
  const Target targets[] = {
      {"1 bf16 part to fp8 1x128", 1, Format::kFp8E4m3, {1, 128}, DataType::kF32},
      {"4 bf16 parts to fp8 1x128", 4, Format::kFp8E4m3, {1, 128}, DataType::kF32},
      {"4 bf16 parts to mxfp4", 4, Format::kMxfp4, {1, 32}, DataType::kF8E8m0}};
  for (const Target& t : targets) {
    for (const int64_t rows : {8, 512, 8192}) {
      const int64_t in = t.parts * rows * 2 * kWidth * 2;
      const int64_t code_cols = element_bits(t.format) == 4 ? kWidth / 2 : kWidth;
      const int64_t scale_bytes = rows * scale_cols(t.block, kWidth) * element_bytes(t.scale_type);
      const int copies = rotation(in);
      const DeviceBuffer input = random_memory(copies * in, true, 12);
      const DeviceBuffer codes(copies * rows * code_cols), scales(copies * scale_bytes);
      const Launch launch = [&](int i, cudaStream_t stream) {
        const auto out = [&](const DeviceBuffer& memory, int64_t bytes, DataType type,
                             int64_t cols) {
          return TensorView::contiguous(memory.as<char>() + i * bytes, type, {rows, cols});
        };
        cuda_backend()->activate_quantize(
            {.input = TensorView::contiguous(input.as<char>() + i * in, DataType::kBf16,
                                             {t.parts, rows, 2 * kWidth}),
             .quantized = {.format = t.format,
                           .scale_block = t.block,
                           .values =
                               out(codes, rows * code_cols,
                                   element_bits(t.format) == 4 ? DataType::kU8 : DataType::kF8E4m3,
                                   code_cols),
                           .scales = out(scales, scale_bytes, t.scale_type,
                                         scale_cols(t.block, kWidth))}},
            {.backend = BackendKind::kCuda, .stream = {stream}});
      };
      const int64_t bytes = in + rows * code_cols + scale_bytes;
      report.add("activate_quantize", t.name, rows, time_graph(launch, copies), bytes,
                 limits.copy_us(bytes));
    }
  }
}

void bench_combine(Report& report, Limits& limits) {
  constexpr int64_t kWidth = 7168;
  for (const int64_t top_k : {4, 8}) {
    for (const int64_t tokens : {1, 64, 1024, 8192}) {
      const int64_t in = tokens * top_k * kWidth * 2;
      const int64_t out = tokens * kWidth * 2;
      const int copies = rotation(in + out);
      const DeviceBuffer input = random_memory(copies * in, true, 8);
      const DeviceBuffer weights = random_memory(tokens * top_k * 4, false, 9);
      const DeviceBuffer output(copies * out);
      const Launch launch = [&](int i, cudaStream_t stream) {
        cuda_backend()->combine(
            {.expert_output = TensorView::contiguous(input.as<char>() + i * in, DataType::kBf16,
                                                     {tokens, top_k, kWidth}),
             .topk_weights =
                 TensorView::contiguous(weights.data(), DataType::kF32, {tokens, top_k}),
             .output = TensorView::contiguous(output.as<char>() + i * out, DataType::kBf16,
                                              {tokens, kWidth})},
            {.backend = BackendKind::kCuda, .stream = {stream}});
      };
      const int64_t bytes = in + out + tokens * top_k * 4;
      report.add("combine", fmt::format("K{} H7168 bf16", top_k), tokens,
                 time_graph(launch, copies), bytes, limits.copy_us(bytes));
    }
  }
}

/// Matrices that every token meets. Beside them a read of the weights and the tokens.
void bench_linear(Report& report, Limits& limits, bool generic) {
  struct Shape {
    const char* name;
    int64_t rows, cols;
    Format format;
    DataType output;
  };
  const Shape shapes[] = {
      {"deepseek-r1 router 256 x 7168 bf16", 256, 7168, Format::kBf16, DataType::kF32},
      {"gpt-oss router 128 x 2880 bf16", 128, 2880, Format::kBf16, DataType::kF32},
      {"shared gate 1 x 2048 bf16", 1, 2048, Format::kBf16, DataType::kF32},
      {"glm-4.5 router 160 x 5120 f32", 160, 5120, Format::kF32, DataType::kF32},
      {"kimi-k3 latent 3584 x 7168 bf16", 3584, 7168, Format::kBf16, DataType::kBf16}};
  LayerOptions options;
  options.generic_kernels = generic;
  for (const Shape& s : shapes) {
    const bool bf16 = s.format == Format::kBf16;
    const DataType type = bf16 ? DataType::kBf16 : DataType::kF32;
    const int64_t weight_bytes = s.rows * s.cols * element_bytes(type);
    const int copies = rotation(weight_bytes);
    const DeviceBuffer random = random_memory(weight_bytes, bf16, 13);
    std::vector<char> values(static_cast<size_t>(weight_bytes));
    cuda_backend()->download(values.data(), random.data(), weight_bytes, options);
    const WeightMatrix matrix{
        .format = s.format,
        .rows = s.rows,
        .cols = s.cols,
        .values = TensorView::contiguous(values.data(), type, {s.rows, s.cols})};
    std::vector<std::unique_ptr<PackedLinear>> linears;
    for (int i = 0; i < copies; ++i) {
      linears.push_back(cuda_backend()->pack_linear(matrix, {}, options));
    }
    for (const int64_t tokens : {1, 2, 4, 8, 16, 64, 256, 1024, 8192}) {
      const int64_t in = tokens * s.cols * 2;
      const int64_t out = tokens * s.rows * element_bytes(s.output);
      const DeviceBuffer input = random_memory(copies * in, true, 14);
      const DeviceBuffer output(copies * out);
      const DeviceBuffer workspace(std::max<int64_t>(linears.front()->workspace_bytes(tokens), 1));
      const Launch launch = [&](int i, cudaStream_t stream) {
        linears[static_cast<size_t>(i)]->run(
            {.input = TensorView::contiguous(input.as<char>() + i * in, DataType::kBf16,
                                             {tokens, s.cols}),
             .output =
                 TensorView::contiguous(output.as<char>() + i * out, s.output, {tokens, s.rows})},
            {workspace.data(), workspace.bytes()}, {stream});
      };
      constexpr double kBudget = 0.1;
      report.add("linear", fmt::format("{}{}", s.name, generic ? ", generic kernel" : ""), tokens,
                 time_graph(launch, copies, kBudget), weight_bytes + in,
                 limits.read_us(weight_bytes + in));
    }
  }
}

/// The generic experts, for the record: one copy, warm, f32 arithmetic.
void bench_experts(Report& report, Limits& limits) {
  for (const int64_t tokens : {1, 64, 1024}) {
    LayerSpec spec = with_format(model_shape("qwen3-30b-a3b").spec, Format::kBf16);
    spec.num_experts = 128;
    const int64_t width = spec.expert_width(), inner = spec.intermediate_size;
    std::vector<uint16_t> values(static_cast<size_t>(width * inner), 0x3c00);
    const auto matrix = [&](int64_t rows, int64_t cols) {
      return WeightMatrix{
          .format = Format::kBf16,
          .rows = rows,
          .cols = cols,
          .values = TensorView::contiguous(values.data(), DataType::kBf16, {rows, cols})};
    };
    const ExpertSource source{.num_experts = spec.num_experts, .load = [&](int64_t) {
                                return ExpertWeights{.gate = matrix(inner, width),
                                                     .up = matrix(inner, width),
                                                     .down = matrix(width, inner)};
                              }};
    const auto experts = cuda_backend()->pack_experts(spec, source, {});
    const auto ids = random_ids(tokens, spec.top_k, spec.num_experts, 1);
    DeviceBuffer device_ids(static_cast<int64_t>(ids.size()) * 4);
    device_ids.copy_from_host(0, ids.data(), device_ids.bytes());
    const DeviceBuffer hidden = random_memory(tokens * width * 2, true, 2);
    const DeviceBuffer output(tokens * width * 2);
    const DeviceBuffer workspace(experts->workspace_bytes(tokens, spec.top_k));
    const Launch launch = [&](int, cudaStream_t stream) {
      experts->run(
          {.hidden_states = TensorView::contiguous(hidden.data(), DataType::kBf16, {tokens, width}),
           .topk_ids =
               TensorView::contiguous(device_ids.data(), DataType::kI32, {tokens, spec.top_k}),
           .output = TensorView::contiguous(output.data(), DataType::kBf16, {tokens, width})},
          {workspace.data(), workspace.bytes()}, {stream});
    };
    std::vector<int32_t> distinct = ids;
    std::sort(distinct.begin(), distinct.end());
    const auto used = std::unique(distinct.begin(), distinct.end()) - distinct.begin();
    const int64_t bytes = used * 3 * width * inner * 2;
    report.add("experts", "generic kernels, qwen3-30b-a3b bf16", tokens, time_graph(launch, 4),
               bytes, limits.read_us(bytes));
  }
}

json calibration(Limits& limits) {
  json sizes = json::array();
  for (const int64_t mb : {1, 4, 16, 64, 256, 1024}) {
    const int64_t bytes = mb * 1000000;
    const auto rate = [&](double us) { return static_cast<double>(bytes) / us * 1e-3; };
    const double read = limits.read_us(bytes), write = limits.write_us(bytes),
                 copy = limits.copy_us(bytes);
    sizes.push_back({{"mb", mb},
                     {"read_us", read},
                     {"write_us", write},
                     {"copy_us", copy},
                     {"read_gbps", rate(read)},
                     {"write_gbps", rate(write)},
                     {"copy_gbps", rate(copy)}});
    fmt::print("limit {:5} MB: read {:7.0f}, write {:7.0f}, copy {:7.0f} GB/s\n", mb, rate(read),
               rate(write), rate(copy));
  }
  fmt::print("empty kernel: {:.2f} us in a chain, {:.2f} us alone\n", limits.empty_us(),
             limits.empty_single_us());
  return {{"sizes", sizes},
          {"empty_kernel_us", limits.empty_us()},
          {"empty_kernel_single_us", limits.empty_single_us()}};
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  using namespace switchyard::bench;
  CLI::App app{"Times the GPU steps beside the limits of this GPU"};
  std::string out;
  std::vector<std::string> steps{"sort",    "route",  "route+sort", "quantize",
                                 "combine", "linear", "experts"};
  bool both_paths = false;
  app.add_option("--json", out, "where the record goes");
  app.add_option("--steps", steps, "which steps")->delimiter(',');
  app.add_flag("--both-sort-paths", both_paths, "also time the path that the plan did not choose");
  CLI11_PARSE(app, argc, argv);
  try {
    static_cast<void>(switchyard::cuda::device_facts(0));  // says so when there is no GPU
    Limits limits;
    Report report;
    const auto wanted = [&](const char* step) {
      return std::find(steps.begin(), steps.end(), step) != steps.end();
    };
    nlohmann::json record{{"device", switchyard::cuda_backend()->device_name({})},
                          {"limits", calibration(limits)}};
    if (wanted("sort")) bench_sort(report, limits, both_paths);
    if (wanted("route")) bench_route(report, limits);
    if (wanted("route+sort")) bench_route_sort(report, limits);
    if (wanted("quantize")) {
      bench_quantize(report, limits);
      bench_activate_quantize(report, limits);
    }
    if (wanted("combine")) bench_combine(report, limits);
    if (wanted("linear")) bench_linear(report, limits, false);
    if (wanted("generic-linear")) bench_linear(report, limits, true);
    if (wanted("experts")) bench_experts(report, limits);
    record["results"] = report.rows();
    if (!out.empty()) std::ofstream(out) << record.dump(1) << '\n';
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_gpu: {}\n", error.what());
    return 1;
  }
  return 0;
}
