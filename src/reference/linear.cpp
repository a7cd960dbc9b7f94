// One matrix applied to every token: router, shared gate, latent projections.

#include "core/activation.h"
#include "core/workspace_layout.h"
#include "reference/matrix.h"
#include "reference/steps.h"

namespace switchyard::reference {
namespace {

class Linear final : public PackedLinear {
 public:
  Linear(const WeightMatrix& matrix, const TensorView& bias)
      : matrix_(tensors_.keep(matrix)), bias_(tensors_.keep(bias)) {}

  int64_t packed_bytes() const override { return tensors_.bytes(); }
  int64_t workspace_bytes(int64_t) const override { return layout().bytes(); }

  void run(const LinearArgs& args, Workspace workspace, Stream) const override {
    const Layout l = layout();
    auto* input = l.input.in<double>(workspace);
    auto* output = l.output.in<double>(workspace);
    const int64_t num_tokens = active_tokens(args.num_tokens, args.input.extent(0));
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t k = 0; k < matrix_.cols; ++k) {
        input[k] = load(args.input, t * matrix_.cols + k);
        if (!matrix_.smooth_scales.empty()) input[k] *= load(matrix_.smooth_scales, k);
      }
      multiply(matrix_, bias_, input, 1, l.decoded.in<float>(workspace), output);
      for (int64_t n = 0; n < matrix_.rows; ++n) {
        const int64_t at = t * matrix_.rows + n;
        double value = output[n];
        if (args.epilogue == LinearEpilogue::kSigmoid) value = sigmoid(value);
        if (!args.addend.empty()) value += load(args.addend, at);
        store(args.output, at, value);
      }
    }
  }

 private:
  struct Layout {
    WorkspaceRegion input, output, decoded;
    int64_t bytes() const { return decoded.end(); }
  };
  Layout layout() const {
    WorkspaceCarver carver;
    return {.input = carver.take(matrix_.cols * 8),
            .output = carver.take(matrix_.rows * 8),
            .decoded = carver.take(matrix_.cols * 4)};
  }

  StoredTensors tensors_;
  WeightMatrix matrix_;
  TensorView bias_;
};

}  // namespace

std::unique_ptr<PackedLinear> pack_linear(const WeightMatrix& matrix, const TensorView& bias) {
  return std::make_unique<Linear>(matrix, bias);
}

}  // namespace switchyard::reference
