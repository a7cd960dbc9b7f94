// Rows divided by their root mean square, times a scale. Squares are summed in double, in eight
// interleaved partial sums: no square overflows, and the order depends on the column only.

#include <algorithm>
#include <cmath>

#include "cpu/rows.h"
#include "cpu/steps.h"

namespace switchyard::cpu {
namespace {

double sum_of_squares(const TensorView& input, int64_t first, int64_t num_columns) {
  constexpr int64_t kLanes = 8;
  double lanes[kLanes] = {};
  float values[kTileColumns];
  for (int64_t column = 0; column < num_columns; column += kTileColumns) {
    const int64_t n = std::min(kTileColumns, num_columns - column);
    load_row(input, first + column, n, values);
    std::fill(values + n, values + align_up(n, kLanes), 0.0f);
    for (int64_t i = 0; i < n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const double value = static_cast<double>(values[i + lane]);
        lanes[lane] += value * value;
      }
    }
  }
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

void rms_norm(const RmsNormArgs& args, Executor& executor) {
  const int64_t num_columns = args.input.extent(1);
  const int64_t num_tokens = rows_to_compute(args.num_tokens, args.input.extent(0));
  for_row_ranges(executor, num_tokens, num_columns, [&](int64_t begin, int64_t end) {
    float values[kTileColumns];
    float scale[kTileColumns];
    for (int64_t token = begin; token < end; ++token) {
      const int64_t first = token * num_columns;
      const double mean =
          sum_of_squares(args.input, first, num_columns) / static_cast<double>(num_columns);
      const double inverse = 1.0 / std::sqrt(mean + static_cast<double>(args.epsilon));
      for (int64_t column = 0; column < num_columns; column += kTileColumns) {
        const int64_t n = std::min(kTileColumns, num_columns - column);
        load_row(args.input, first + column, n, values);
        load_row(args.scale, column, n, scale);
        for (int64_t i = 0; i < n; ++i) {
          values[i] = static_cast<float>(static_cast<double>(values[i]) * inverse) * scale[i];
        }
        store_row(args.output, first + column, n, values);
      }
    }
  });
}

}  // namespace switchyard::cpu
