// Projections that every token takes once: router, shared gate, latent down and up. Always float
// products, so that routing does not feel the quantisation of activations.

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/activation.h"
#include "core/number_formats.h"
#include "core/workspace_layout.h"
#include "cpu/activation_rows.h"
#include "cpu/experts.h"
#include "cpu/huge_buffer.h"
#include "cpu/isa.h"
#include "cpu/pack_weights.h"
#include "cpu/rows.h"
#include "cpu/thread_pool.h"

namespace switchyard::cpu {
namespace {

constexpr int64_t kPassRows = 512;  // bounds the workspace
constexpr int64_t kItemRows = 96;

struct LinearWorkspace {
  WorkspaceRegion rows, threads;
  int64_t thread_bytes = 0;
  int64_t bytes = 0;
};

struct LinearScratch {
  MultiplyScratch multiply;
  float out[kItemRows * kPanelRows];
};

class CpuLinear final : public PackedLinear {
 public:
  CpuLinear(const WeightMatrix& matrix, const TensorView& bias, const LayerOptions& options)
      : kernels_(select_kernels(options.cpu_isa)),
        executor_(options.executor != nullptr
                      ? std::shared_ptr<Executor>(std::shared_ptr<void>{}, options.executor)
                      : shared_pool(options.num_threads)),
        packing_(choose_packing(matrix, false)),
        rows_(row_layout(packing_.layout, RowValues::kF32)),
        num_outputs_(matrix.rows),
        num_panels_(ceil_div<int64_t>(matrix.rows, kPanelRows)),
        global_scale_(packing_.decoded ? 1.0f : matrix.global_scale),
        panels_(num_panels_ * packing_.layout.panel_bytes) {
    for (int64_t p = 0; p < num_panels_; ++p) {
      pack_panel(matrix, packing_, p, panels_.data() + p * packing_.layout.panel_bytes, "linear");
    }
    smooth_scales_ = copy(matrix.smooth_scales);
    bias_ = copy(bias);
    if (bias_.empty()) bias_.assign(static_cast<size_t>(num_outputs_), 0.0f);
  }

  int64_t packed_bytes() const override { return panels_.bytes(); }
  int64_t workspace_bytes(int64_t max_tokens) const override { return layout(max_tokens).bytes; }

  void run(const LinearArgs& args, Workspace workspace, Stream) const override {
    const int64_t num_tokens = rows_to_compute(args.num_tokens, args.input.extent(0));
    const LinearWorkspace where = layout(num_tokens);
    for (int64_t first = 0; first < num_tokens; first += kPassRows) {
      run_pass(args, first, std::min(kPassRows, num_tokens - first), where, workspace);
    }
  }

 private:
  static std::vector<float> copy(const TensorView& from) {
    std::vector<float> to(static_cast<size_t>(from.empty() ? 0 : from.extent(0)));
    for (size_t i = 0; i < to.size(); ++i) {
      to[i] = load_as_f32(from.data, from.type, static_cast<int64_t>(i) * from.stride(0));
    }
    return to;
  }

  LinearWorkspace layout(int64_t max_tokens) const {
    WorkspaceCarver carver;
    LinearWorkspace where;
    where.rows = carver.take(std::clamp<int64_t>(max_tokens, 1, kPassRows) * rows_.row_bytes);
    where.thread_bytes = align_up<int64_t>(sizeof(LinearScratch), kWorkspaceAlignment);
    where.threads = carver.take(executor_->num_threads() * where.thread_bytes);
    where.bytes = carver.bytes();
    return where;
  }

  void run_pass(const LinearArgs& args, int64_t first, int64_t count, const LinearWorkspace& where,
                Workspace workspace) const {
    auto* rows = where.rows.in<uint8_t>(workspace);
    const RowSource source{.input = args.input};
    parallel_for(*executor_, count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        prepare_row(kernels_, shifted(source, first), r,
                    smooth_scales_.empty() ? nullptr : smooth_scales_.data(),
                    ActivationFormat::kNone, rows_, nullptr, rows + r * rows_.row_bytes);
      }
    });
    const int64_t num_chunks = ceil_div(count, kItemRows);
    std::atomic<int64_t> counter{0};
    run_on_all(*executor_, [&](int thread) {
      auto* scratch = reinterpret_cast<LinearScratch*>(where.threads.in<char>(workspace) +
                                                       thread * where.thread_bytes);
      for (int64_t item; (item = counter.fetch_add(1)) < num_chunks * num_panels_;) {
        const int64_t begin = item / num_panels_ * kItemRows;
        run_item(args, rows + begin * rows_.row_bytes, first + begin,
                 std::min(kItemRows, count - begin), item % num_panels_, *scratch);
      }
    });
  }

  /// The same source, with row 0 at `first`.
  static RowSource shifted(RowSource source, int64_t first) {
    source.input.data =
        source.input.as<char>() + first * source.input.stride(0) * element_bytes(source.input.type);
    return source;
  }

  void run_item(const LinearArgs& args, const uint8_t* rows, int64_t first, int64_t count,
                int64_t panel, LinearScratch& scratch) const {
    MultiplyJob job{.layout = &packing_.layout, .row_layout = &rows_};
    job.panel = panels_.data() + panel * packing_.layout.panel_bytes;
    job.global_scale = global_scale_;
    job.rows = rows;
    job.num_rows = static_cast<int32_t>(count);
    job.out = scratch.out;
    job.scratch = &scratch.multiply;
    kernels_.multiply(job);
    const int64_t begin = panel * kPanelRows;
    const int64_t cols = std::min<int64_t>(kPanelRows, num_outputs_ - begin);
    for (int64_t r = 0; r < count; ++r) {
      float* out = scratch.out + r * kPanelRows;
      for (int64_t c = 0; c < cols; ++c) {
        out[c] += bias_[static_cast<size_t>(begin + c)];
        if (args.epilogue == LinearEpilogue::kSigmoid) out[c] = sigmoid(out[c]);
        if (!args.addend.empty()) {
          out[c] += args.addend.as<const float>()[(first + r) * args.addend.stride(0) + begin + c];
        }
      }
      const TensorView& output = args.output;
      kernels_.store_row(out, cols, output.type,
                         output.as<char>() +
                             ((first + r) * output.stride(0) + begin) * element_bytes(output.type));
    }
  }

  const Kernels& kernels_;
  std::shared_ptr<Executor> executor_;
  Packing packing_;
  RowLayout rows_;
  int64_t num_outputs_;
  int64_t num_panels_;
  float global_scale_;
  HugeBuffer panels_;
  std::vector<float> smooth_scales_;
  std::vector<float> bias_;
};

}  // namespace

std::unique_ptr<PackedLinear> make_linear(const WeightMatrix& matrix, const TensorView& bias,
                                          const LayerOptions& options) {
  return std::make_unique<CpuLinear>(matrix, bias, options);
}

}  // namespace switchyard::cpu
