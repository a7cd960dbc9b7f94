// The CPU as a Backend: adapters from the interface to the steps.

#include <fmt/format.h>

#include <cstring>

#include "cpu/experts.h"
#include "cpu/isa.h"
#include "cpu/machine_limits.h"
#include "cpu/steps.h"
#include "cpu/thread_pool.h"

namespace switchyard {
namespace {

Executor& executor(const ops::Execution& where) {
  return where.executor != nullptr ? *where.executor : cpu::default_pool();
}

class CpuBackend final : public Backend {
 public:
  BackendKind kind() const override { return BackendKind::kCpu; }
  std::string why_unavailable(int) const override { return cpu::why_no_kernels(); }
  std::string why_unsupported(const LayerSpec& spec) const override {
    if (spec.activation_format == ActivationFormat::kFp8PerTensor) {
      return "activation_format is fp8_per_tensor; one scale for the whole batch would make a "
             "token's result depend on the others, use fp8_per_token";
    }
    return {};
  }
  std::string device_name(const LayerOptions& options) const override {
    const int num_threads = options.executor != nullptr ? options.executor->num_threads()
                            : options.num_threads > 0   ? options.num_threads
                                                        : cpu::num_usable_cores();
    return fmt::format("x86-64 {}, {} thread{}",
                       cpu::isa_label(cpu::select_kernels(options.cpu_isa)), num_threads,
                       num_threads == 1 ? "" : "s");
  }

  Calibration calibrate(const LayerOptions& options) const override {
    Calibration calibration;
    calibration.limits = cpu::measure_machine(options.num_threads);
    return calibration;
  }

  ReadMeter read_meter(int num_threads) const override { return cpu::make_read_meter(num_threads); }

  void route(const RouteRequest& request, const ops::Execution& where) const override {
    cpu::route(request.spec, request.args, executor(where));
  }
  int64_t sort_workspace_bytes(int64_t, int64_t, int64_t, int64_t) const override { return 0; }
  void sort(const ops::SortArgs& args, const ops::Execution& where) const override {
    cpu::sort(args, executor(where));
  }
  void quantize(const ops::QuantizeArgs& args, const ops::Execution& where) const override {
    cpu::quantize(args, executor(where));
  }
  void activate(const ops::ActivateArgs& args, const ops::Execution& where) const override {
    cpu::activate(args, executor(where));
  }
  void combine(const ops::CombineArgs& args, const ops::Execution& where) const override {
    cpu::combine(args, executor(where));
  }
  void rms_norm(const RmsNormArgs& args, const ops::Execution& where) const override {
    cpu::rms_norm(args, executor(where));
  }

  std::unique_ptr<PackedExperts> pack_experts(const LayerSpec& spec, const ExpertSource& source,
                                              const LayerOptions& options) const override {
    return cpu::make_experts(spec, source, options);
  }
  std::unique_ptr<PackedLinear> pack_linear(const WeightMatrix& matrix, const TensorView& bias,
                                            const LayerOptions& options) const override {
    return cpu::make_linear(matrix, bias, options);
  }
  std::shared_ptr<void> upload(const void* data, int64_t bytes,
                               const LayerOptions&) const override {
    std::shared_ptr<std::byte[]> copy(new std::byte[static_cast<size_t>(bytes)]);
    std::memcpy(copy.get(), data, static_cast<size_t>(bytes));
    return {copy, copy.get()};
  }
};

}  // namespace

const Backend& cpu_backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace switchyard
