#include "cli/verify_case.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "cli/load_layer.h"

namespace switchyard::cli {
namespace {

struct Outputs {
  HostTensor output;
  HostTensor topk_ids;
  HostTensor topk_weights;
};

// A quiet NaN in every float type; catches what a kernel reads or leaves before it was written.
void poison(const TensorView& view) {
  std::memset(view.data, 0xff, static_cast<size_t>(view.num_elements() * element_bytes(view.type)));
}

/// The whole block with the layer's own router, over poisoned outputs and scratch.
Outputs forward(const Layer& layer, const TensorView& hidden_states, const TensorView& input_ids) {
  const int64_t num_tokens = hidden_states.extent(0);
  const int64_t top_k = layer.spec().top_k;
  Outputs result{.output = HostTensor(hidden_states.type, {num_tokens, hidden_states.extent(1)}),
                 .topk_ids = HostTensor(DataType::kI32, {num_tokens, top_k}),
                 .topk_weights = HostTensor(DataType::kF32, {num_tokens, top_k})};
  poison(result.output.view());
  const DeviceMemory scratch = make_scratch(layer, num_tokens);
  Runner(layer, scratch)
      .forward({.hidden_states = hidden_states,
                .output = result.output.view(),
                .input_ids = input_ids,
                .topk_ids_out = result.topk_ids.view(),
                .topk_weights_out = result.topk_weights.view()});
  return result;
}

/// The experts alone, with a given choice.
HostTensor forward_routed(const Layer& layer, const TensorView& hidden_states,
                          const TensorView& topk_ids, const TensorView& topk_weights) {
  const int64_t num_tokens = hidden_states.extent(0);
  HostTensor output(hidden_states.type, {num_tokens, hidden_states.extent(1)});
  const DeviceMemory scratch = make_scratch(layer, num_tokens);
  Runner(layer, scratch)
      .forward({.hidden_states = hidden_states,
                .output = output.view(),
                .topk_ids = topk_ids,
                .topk_weights = topk_weights});
  return output;
}

/// Row of a pair among the expert-sorted activations: experts ascending, tokens ascending.
int64_t sorted_row(const TensorView& topk_ids, int64_t token, int32_t expert) {
  const int64_t top_k = topk_ids.extent(1);
  const auto* ids = topk_ids.as<int32_t>();
  int64_t row = 0;
  for (int64_t pair = 0; pair < topk_ids.num_elements(); ++pair) {
    row += ids[pair] < expert || (ids[pair] == expert && pair / top_k < token) ? 1 : 0;
  }
  return row;
}

/// Runs the worst token again with one of its experts at a time.
WorstElement locate(const Layer& layer, const Layer& reference, const TensorView& hidden_states,
                    const Outputs& outputs, const Comparison& comparison) {
  WorstElement worst{.token = comparison.worst_row, .column = comparison.worst_column};
  if (worst.token < 0) return worst;
  const TensorView x = rows_of(hidden_states, worst.token, 1);
  const HostTensor x_f32 = convert(x, DataType::kF32);
  const TensorView ids = rows_of(outputs.topk_ids.view(), worst.token, 1);
  const TensorView weights = rows_of(outputs.topk_weights.view(), worst.token, 1);
  const int64_t top_k = ids.extent(1);
  double largest = -1;
  for (int64_t k = 0; k < top_k; ++k) {
    const HostTensor single(DataType::kI32, {1, top_k});
    for (int64_t i = 0; i < top_k; ++i) {
      single.as<int32_t>()[i] = i == k ? ids.as<int32_t>()[k] : -1;
    }
    const HostTensor got =
        convert(forward_routed(layer, x, single.view(), weights).view(), DataType::kF32);
    const HostTensor want = forward_routed(reference, x_f32.view(), single.view(), weights);
    const double difference =
        std::abs(double{got.as<float>()[worst.column]} - double{want.as<float>()[worst.column]});
    if (difference > largest || std::isnan(difference)) {
      largest = difference;
      worst.expert = ids.as<int32_t>()[k];
    }
  }
  worst.row = sorted_row(outputs.topk_ids.view(), worst.token, static_cast<int32_t>(worst.expert));
  return worst;
}

bool same(const Outputs& a, const Outputs& b) {
  return same_bits(a.output.view(), b.output.view()) &&
         same_bits(a.topk_ids.view(), b.topk_ids.view()) &&
         same_bits(a.topk_weights.view(), b.topk_weights.view());
}

/// First, middle and last token by themselves.
std::string why_batch_dependent(const Layer& layer, const InputCase& input, const Outputs& batch) {
  const int64_t num_tokens = input.hidden_states.view().extent(0);
  for (const int64_t token : {int64_t{0}, num_tokens / 2, num_tokens - 1}) {
    const TensorView ids = input.input_ids.view();
    const Outputs alone = forward(layer, rows_of(input.hidden_states.view(), token, 1),
                                  ids.empty() ? ids : rows_of(ids, token, 1));
    if (!same_bits(alone.output.view(), rows_of(batch.output.view(), token, 1)) ||
        !same_bits(alone.topk_ids.view(), rows_of(batch.topk_ids.view(), token, 1))) {
      return fmt::format("token {} alone differs from token {} in the batch", token, token);
    }
  }
  return "";
}

}  // namespace

CaseResult verify_case(const Layer& layer, const Layer& reference, const RouterTruth& router,
                       const InputCase& input) {
  const TensorView& x = input.hidden_states.view();
  const HostTensor x_f32 = convert(x, DataType::kF32);
  const Outputs outputs = forward(layer, x, input.input_ids.view());
  const HostTensor expected =
      forward_routed(reference, x_f32.view(), outputs.topk_ids.view(), outputs.topk_weights.view());
  CaseResult result;
  result.name = input.name;
  result.type = x.type;
  result.bound = error_bound(layer.spec(), layer.backend(), x.type);
  result.comparison = compare(outputs.output.view(), expected.view());
  result.worst = locate(layer, reference, x, outputs, result.comparison);
  result.routing = router.why_wrong(x_f32.view(), input.input_ids.view(), outputs.topk_ids.view(),
                                    outputs.topk_weights.view());
  if (!same(outputs, forward(layer, x, input.input_ids.view()))) {
    result.repeat = "the same call gave other bits";
  }
  result.batch = why_batch_dependent(layer, input, outputs);
  return result;
}

}  // namespace switchyard::cli
