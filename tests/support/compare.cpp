#include "support/compare.h"

#include <fmt/format.h>

#include <cmath>

#include "core/number_formats.h"

namespace switchyard::test {
namespace {

/// [T, K, C] as [T * K, C].
TensorView as_rows(const TensorView& tensor) {
  if (tensor.rank == 2) return tensor;
  return TensorView::contiguous(tensor.data, tensor.type,
                                {tensor.extent(0) * tensor.extent(1), tensor.extent(2)});
}

double value(const TensorView& rows, int64_t row, int64_t column) {
  const int64_t at = row * rows.stride(0) + column * rows.stride(1);
  if (rows.type == DataType::kF64) return rows.as<double>()[at];
  return static_cast<double>(load_as_f32(rows.data, rows.type, at));
}

/// "row 7: token 3, slot 1, expert 12", or the experts of a token.
std::string describe(int64_t row, int64_t num_rows, const TensorView& topk_ids) {
  if (topk_ids.empty()) return fmt::format("row {}", row);
  const int64_t top_k = topk_ids.extent(1);
  const auto* ids = topk_ids.as<int32_t>();
  if (num_rows == topk_ids.num_elements() && num_rows != topk_ids.extent(0)) {
    return fmt::format("row {}: token {}, slot {}, expert {}", row, row / top_k, row % top_k,
                       ids[row]);
  }
  return fmt::format("token {}, experts {}", row,
                     fmt::join(ids + row * top_k, ids + (row + 1) * top_k, " "));
}

}  // namespace

testing::AssertionResult within(const TensorView& output, const TensorView& reference,
                                const ErrorBound& bound, const TensorView& topk_ids) {
  const TensorView out = as_rows(output);
  const TensorView ref = as_rows(reference);
  const Comparison c = compare(out, ref);
  std::string text =
      fmt::format("rms error {:.3e} (bound {:.3e}), worst {:.3e} of its row's rms (bound {:.3e})",
                  c.rms_error, bound.rms, c.worst_error, bound.worst);
  if (c.worst_row >= 0) {
    text += fmt::format("\n  at column {} of {}: {} instead of {}", c.worst_column,
                        describe(c.worst_row, ref.extent(0), topk_ids),
                        value(out, c.worst_row, c.worst_column),
                        value(ref, c.worst_row, c.worst_column));
  }
  if (c.num_nan > 0) text += fmt::format("\n  {} NaN or infinite elements", c.num_nan);
  if (!bound.derivation.empty()) text += "\n  bound: " + bound.derivation;
  return c.within(bound) ? testing::AssertionSuccess() << text
                         : testing::AssertionFailure() << text;
}

ErrorBound rounding_bound(int64_t terms, DataType type) {
  const double step = type == DataType::kBf16  ? 0x1p-7
                      : type == DataType::kF16 ? 0x1p-10
                      : type == DataType::kF64 ? 0.0
                                               : 0x1p-23;
  const double sums = 0x1p-24 * std::sqrt(static_cast<double>(terms));
  return {.rms = std::hypot(sums, step / std::sqrt(12.0)),
          .worst = 12 * sums + 4 * step,
          .derivation = fmt::format("f32 sums of {} terms, rounded to {}", terms, to_string(type))};
}

}  // namespace switchyard::test
