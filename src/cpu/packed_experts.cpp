#include "cpu/packed_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "core/activation_format.h"
#include "core/number_formats.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "switchyard/error.h"

namespace switchyard::cpu {
namespace {

/// Weights of one expert; tells the source when it is done with them.
class LoadedExpert {
 public:
  LoadedExpert(const ExpertSource& source, int64_t expert)
      : source_(source), expert_(expert), weights_(source.load(expert)) {}
  ~LoadedExpert() {
    if (source_.release) source_.release(expert_);
  }
  LoadedExpert(const LoadedExpert&) = delete;
  LoadedExpert& operator=(const LoadedExpert&) = delete;
  const ExpertWeights& weights() const { return weights_; }

 private:
  const ExpertSource& source_;
  int64_t expert_;
  ExpertWeights weights_;
};

PackedStage make_stage(const WeightMatrix& matrix, int num_matrices, bool has_bias,
                       int64_t num_experts, ActivationFormat format, const Kernels& kernels,
                       const NumaTopology& topology) {
  PackedStage stage;
  const bool wants_integer = format == ActivationFormat::kInt8Block32;
  stage.packing = choose_packing(matrix, wants_integer);
  stage.activation_format = format;
  const bool integer = wants_integer && has_integer_kernels(stage.packing.layout);
  stage.rows = row_layout(stage.packing.layout, integer ? RowValues::kInt8 : RowValues::kF32,
                          kernels.word_rows);
  stage.num_outputs = matrix.rows;
  stage.num_inputs = matrix.cols;
  stage.num_panels = ceil_div<int64_t>(matrix.rows, kPanelRows);
  stage.num_matrices = num_matrices;
  stage.panels_per_shard = ceil_div<int64_t>(stage.num_panels, topology.num_nodes);
  const int64_t num_shards = ceil_div(stage.num_panels, stage.panels_per_shard);
  for (int64_t shard = 0; shard < num_shards; ++shard) {
    const int64_t panels = num_experts * num_matrices * stage.panels_of_shard(shard);
    const HugeBuffer& buffer = stage.shards.emplace_back(panels * stage.packing.layout.panel_bytes);
    if (num_shards > 1) topology.place(buffer.data(), buffer.bytes(), static_cast<int>(shard));
  }
  const auto matrices = static_cast<size_t>(num_experts * num_matrices);
  stage.global_scales.assign(matrices, 1.0f);
  if (has_bias) {
    stage.biases.assign(matrices * static_cast<size_t>(stage.num_panels * kPanelRows), 0.0f);
  }
  if (!matrix.smooth_scales.empty()) {
    stage.smooth_scales.assign(static_cast<size_t>(num_experts * stage.num_inputs), 1.0f);
  }
  return stage;
}

void copy_floats(const TensorView& from, float* to) {
  for (int64_t i = 0; i < from.extent(0); ++i) {
    to[i] = load_as_f32(from.data, from.type, i * from.stride(0));
  }
}

class ExpertPacker {
 public:
  ExpertPacker(ExpertPanels& panels, const ExpertSource& source, const LayerOptions& options)
      : panels_(panels), source_(source), options_(options) {}

  void pack_all() {
    const LoadedExpert first(source_, 0);
    choose_stages(first.weights());
    pack_expert(first.weights(), 0);
    num_done_ = 1;
    report();
    next_ = 1;
    const int threads = panels_.executor->num_threads();
    if (panels_.num_experts < threads) {
      while (claim_and_pack()) {
      }
    } else {
      run_on_all(*panels_.executor, [this](int) {
        while (claim_and_pack()) {
        }
      });
    }
    if (failure_) std::rethrow_exception(failure_);
    report();
  }

 private:
  void choose_stages(const ExpertWeights& first) {
    const LayerSpec& spec = panels_.spec;
    const ActivationFormat format = resolved_activation_format(spec, BackendKind::kCpu);
    const Kernels& kernels = *panels_.kernels;
    const bool gated = spec.activation.gated();
    const bool gate_up_bias = !first.up_bias.empty() || !first.gate_bias.empty();
    panels_.gate_up = make_stage(first.up, gated ? 2 : 1, gate_up_bias, panels_.num_experts, format,
                                 kernels, *panels_.topology);
    panels_.down = make_stage(first.down, 1, !first.down_bias.empty(), panels_.num_experts, format,
                              kernels, *panels_.topology);
  }

  /// Packs one more expert. False when there is none left, or packing failed.
  bool claim_and_pack() {
    const int64_t expert = next_.fetch_add(1);
    if (expert >= panels_.num_experts || failed_.load()) return false;
    try {
      const LoadedExpert loaded(source_, expert);
      pack_expert(loaded.weights(), expert);
    } catch (...) {
      const std::scoped_lock lock(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
      failed_ = true;
    }
    ++num_done_;
    if (std::this_thread::get_id() == creator_ && !failed_.load()) report();
    return true;
  }

  /// Tells on_progress of every expert that is done; only on the creating thread.
  void report() {
    for (const int64_t done = num_done_.load(); num_reported_ < done;) {
      ++num_reported_;
      if (options_.on_progress) options_.on_progress(num_reported_, panels_.num_experts);
    }
  }

  void pack_expert(const ExpertWeights& weights, int64_t expert) {
    const bool gated = panels_.gate_up.num_matrices == 2;
    if (gated) pack_matrix(panels_.gate_up, weights.gate, weights.gate_bias, expert, 0, "gate");
    pack_matrix(panels_.gate_up, weights.up, weights.up_bias, expert, gated ? 1 : 0, "up");
    pack_matrix(panels_.down, weights.down, weights.down_bias, expert, 0, "down");
  }

  void pack_matrix(PackedStage& stage, const WeightMatrix& matrix, const TensorView& bias,
                   int64_t expert, int index, const char* name) {
    const std::string full_name = fmt::format("expert {} {}", expert, name);
    const bool integer = stage.activation_format == ActivationFormat::kInt8Block32;
    if (!(choose_packing(matrix, integer) == stage.packing)) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("{} has another format, scale type or scale block than expert 0; the "
                              "experts of a layer must be stored alike",
                              full_name));
    }
    const int64_t count = stage.num_panels;
    // A few large experts are packed one by one with all threads on the panels of each.
    const int threads = panels_.executor->num_threads();
    const int64_t grain =
        panels_.num_experts < threads ? ceil_div<int64_t>(count, 4 * threads) : count;
    parallel_for_panels(count, grain, [&](int64_t panel) {
      auto* out = const_cast<uint8_t*>(stage.panel(expert, panel, index));
      pack_panel(matrix, stage.packing, panel, out, full_name);
    });
    const auto slot = static_cast<size_t>(expert * stage.num_matrices + index);
    stage.global_scales[slot] = stage.packing.decoded ? 1.0f : matrix.global_scale;
    if (!bias.empty()) copy_floats(bias, const_cast<float*>(stage.bias(expert, 0, index)));
    pack_smooth_scales(stage, matrix, expert, index, full_name);
  }

  template <class Body>
  void parallel_for_panels(int64_t count, int64_t grain, const Body& body) {
    std::exception_ptr failure;
    parallel_for(*panels_.executor, count, grain, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t panel = begin; panel < end; ++panel) body(panel);
      } catch (...) {
        const std::scoped_lock lock(failure_mutex_);
        if (!failure) failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
  }

  /// Gate and up see the same activations, so they must agree.
  static void pack_smooth_scales(PackedStage& stage, const WeightMatrix& matrix, int64_t expert,
                                 int index, const std::string& name) {
    auto* stored = const_cast<float*>(stage.smooth_scale(expert));
    if ((stored == nullptr) != matrix.smooth_scales.empty()) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("{} {} smooth scales unlike expert 0; all experts or none have them",
                              name, stored == nullptr ? "has" : "lacks"));
    }
    if (stored == nullptr) return;
    std::vector<float> scales(static_cast<size_t>(stage.num_inputs));
    copy_floats(matrix.smooth_scales, scales.data());
    if (index == 1 && !std::equal(scales.begin(), scales.end(), stored)) {
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("{} has other smooth scales than its gate; they share their input", name));
    }
    std::copy(scales.begin(), scales.end(), stored);
  }

  ExpertPanels& panels_;
  const ExpertSource& source_;
  const LayerOptions& options_;
  const std::thread::id creator_ = std::this_thread::get_id();
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> num_done_{0};
  int64_t num_reported_ = 0;
  std::atomic<bool> failed_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace

ExpertPanels pack_experts(const LayerSpec& spec, const ExpertSource& source,
                          const LayerOptions& options, const NumaTopology& topology) {
  ExpertPanels panels{
      .spec = spec, .kernels = &select_kernels(options.cpu_isa), .topology = &topology};
  panels.executor = options.executor != nullptr
                        ? std::shared_ptr<Executor>(std::shared_ptr<void>{}, options.executor)
                        : shared_pool(options.num_threads);
  panels.num_experts = source.num_experts;
  ExpertPacker(panels, source, options).pack_all();
  return panels;
}

}  // namespace switchyard::cpu
