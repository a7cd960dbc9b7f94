// The oracle as a Backend: available everywhere, supports everything.

#include <cstring>

#include "reference/steps.h"

namespace switchyard {
namespace {

class ReferenceBackend final : public Backend {
 public:
  BackendKind kind() const override { return BackendKind::kReference; }
  std::string why_unavailable(int) const override { return {}; }
  std::string why_unsupported(const LayerSpec&) const override { return {}; }
  std::string device_name(const LayerOptions&) const override { return "one thread, double"; }

  void route(const RouteRequest& request, const ops::Execution& /*where*/) const override {
    reference::route(request.spec, request.args);
  }
  int64_t sort_workspace_bytes(int64_t, int64_t, int64_t, int64_t) const override { return 0; }
  void sort(const ops::SortArgs& args, const ops::Execution&) const override {
    reference::sort(args);
  }
  void quantize(const ops::QuantizeArgs& args, const ops::Execution&) const override {
    reference::quantize(args);
  }
  void activate(const ops::ActivateArgs& args, const ops::Execution&) const override {
    reference::activate(args);
  }
  void combine(const ops::CombineArgs& args, const ops::Execution&) const override {
    reference::combine(args);
  }
  void rms_norm(const RmsNormArgs& args, const ops::Execution&) const override {
    reference::rms_norm(args);
  }

  std::unique_ptr<PackedExperts> pack_experts(const LayerSpec& spec, const ExpertSource& source,
                                              const LayerOptions& options) const override {
    return reference::pack_experts(spec, source, options);
  }
  std::unique_ptr<PackedLinear> pack_linear(const WeightMatrix& matrix, const TensorView& bias,
                                            const LayerOptions&) const override {
    return reference::pack_linear(matrix, bias);
  }
  std::shared_ptr<void> upload(const void* data, int64_t bytes,
                               const LayerOptions&) const override {
    std::shared_ptr<std::byte[]> copy(new std::byte[static_cast<size_t>(bytes)]);
    std::memcpy(copy.get(), data, static_cast<size_t>(bytes));
    return {copy, copy.get()};
  }
};

}  // namespace

const Backend& reference_backend() {
  static const ReferenceBackend instance;
  return instance;
}

}  // namespace switchyard
