// Computes the MoE block of one layer of a model directory. Usage: 01_cpp DIR LAYER

#include <switchyard/switchyard.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::fputs("usage: 01_cpp DIR LAYER\n", stderr);
    return 2;
  }
  using namespace switchyard;

  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const int64_t index = std::atoll(argv[2]);
  const Layer layer = Layer::create(checkpoint.layer(index).spec, checkpoint.weights(index),
                                    {.backend = BackendKind::kCpu});

  const int64_t num_tokens = 4, hidden_size = layer.spec().hidden_size;
  std::vector<float> x(static_cast<size_t>(num_tokens * hidden_size), 0.5f), y(x.size());
  const int64_t bytes = layer.workspace_bytes(num_tokens);
  const std::unique_ptr<void, decltype(&std::free)> scratch(
      std::aligned_alloc(kWorkspaceAlignment, static_cast<size_t>(bytes)), &std::free);

  layer.forward(
      {.hidden_states = TensorView::contiguous(x.data(), DataType::kF32, {num_tokens, hidden_size}),
       .output = TensorView::contiguous(y.data(), DataType::kF32, {num_tokens, hidden_size})},
      {scratch.get(), bytes});

  std::fputs(layer.plan(num_tokens).explain().c_str(), stdout);
  std::printf("output[0][0..3] = %.4f %.4f %.4f %.4f\n", double{y[0]}, double{y[1]}, double{y[2]},
              double{y[3]});
  return 0;
} catch (const switchyard::Error& error) {
  std::fprintf(stderr, "%s: %s\n", to_string(error.code()), error.what());
  return 1;
}
