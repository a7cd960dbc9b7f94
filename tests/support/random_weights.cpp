#include "support/random_weights.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/matrix_slice.h"
#include "core/number_formats.h"
#include "core/scale_layout.h"
#include "switchyard/models.h"

namespace switchyard::test {
namespace {

bool has_scales(Format format) {
  return format != Format::kF32 && format != Format::kF16 && format != Format::kBf16;
}

/// Largest magnitude an element of the format holds.
double largest(Format format) {
  switch (format) {
    case Format::kFp8E4m3:
    case Format::kMxfp8: return 448.0;
    case Format::kFp8E5m2: return 57344.0;
    case Format::kInt8: return 127.0;
    case Format::kInt4: return 7.0;
    default: return 6.0;
  }
}

uint8_t encode_fp8_e5m2(float value) {
  const int code = f32_to_f16(value);
  const int rounded = (code & 0x7fff) + 0x7f + ((code >> 8) & 1);
  return static_cast<uint8_t>((code >> 8 & 0x80) | std::min(rounded >> 8, 0x7b));
}

uint8_t encode_nibble(Format format, float value, int zero_point) {
  if (format != Format::kInt4) return f32_to_fp4_e2m1(value);
  const float code = std::nearbyint(value) + static_cast<float>(zero_point);
  return static_cast<uint8_t>(std::clamp(code, 0.0f, 15.0f));
}

/// Builds one matrix: real values, their scales, then the codes.
class MatrixBuilder {
 public:
  MatrixBuilder(Random& random, int64_t rows, int64_t cols, const MatrixOptions& options)
      : options_(options), rows_(rows), cols_(cols) {
    group_.resize(static_cast<size_t>(cols));
    for (int64_t c = 0; c < cols; ++c)
      group_[static_cast<size_t>(c)] = scale_index(c, options.scale_block.cols);
    if (options.group_index) {
      for (int64_t c = cols - 1; c > 0; --c)
        std::swap(group_[static_cast<size_t>(c)], group_[static_cast<size_t>(random.below(c + 1))]);
    }
    make_values(random);
  }

  OwnedMatrix build(Random& random) {
    OwnedMatrix out;
    WeightMatrix& m = out.matrix;
    m = {.format = options_.format, .rows = rows_, .cols = cols_};
    m.scale_block = options_.scale_block;
    if (has_scales(options_.format)) {
      m.global_scale = options_.global_scale;
      make_scales(random);
      m.scales = add(out, std::move(scales_));
    }
    if (options_.zero_points) m.zero_points = add(out, std::move(zero_points_));
    if (options_.group_index) {
      Buffer index(DataType::kI32, {cols_});
      for (int64_t c = 0; c < cols_; ++c)
        index.set(c, static_cast<double>(group_[static_cast<size_t>(c)]));
      m.group_index = add(out, std::move(index));
    }
    if (options_.smooth_scales) {
      Buffer smooth(DataType::kF32, {cols_});
      for (int64_t c = 0; c < cols_; ++c) smooth.set(c, std::exp2(random.uniform(-1, 1)));
      m.smooth_scales = add(out, std::move(smooth));
    }
    m.values = store(out);
    return out;
  }

 private:
  void make_values(Random& random) {
    const double deviation =
        options_.deviation > 0 ? options_.deviation : 1.0 / std::sqrt(static_cast<double>(cols_));
    const int64_t groups = num_groups();
    std::vector<double> magnitude(
        static_cast<size_t>(scale_rows(options_.scale_block, rows_) * groups));
    for (double& m : magnitude) m = deviation * std::exp2(random.uniform(-1.0, 1.0));
    values_.resize(static_cast<size_t>(rows_ * cols_));
    for (int64_t i = 0; i < rows_ * cols_; ++i)
      values_[static_cast<size_t>(i)] = magnitude[block_of(i / cols_, i % cols_)] * random.normal();
  }

  int64_t num_groups() const { return num_scales(cols_, options_.scale_block.cols); }
  size_t block_of(int64_t row, int64_t col) const {
    return static_cast<size_t>(scale_index(row, options_.scale_block.rows) * num_groups() +
                               group_[static_cast<size_t>(col)]);
  }
  double value(int64_t row, int64_t col) const {
    return values_[static_cast<size_t>(row * cols_ + col)];
  }

  DataType scale_type() const {
    switch (options_.format) {
      case Format::kMxfp4:
      case Format::kMxfp8: return DataType::kF8E8m0;
      case Format::kNvfp4: return DataType::kF8E4m3;
      default: return options_.scale_type;
    }
  }

  void make_scales(Random& random) {
    const int64_t scale_row_count = scale_rows(options_.scale_block, rows_);
    std::vector<double> amax(static_cast<size_t>(scale_row_count * num_groups()), 0.0);
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c)
        amax[block_of(r, c)] = std::max(amax[block_of(r, c)], std::abs(value(r, c)));
    scales_ = Buffer(scale_type(), {scale_row_count, num_groups()});
    for (int64_t i = 0; i < scales_.size(); ++i) {
      const double wanted =
          amax[static_cast<size_t>(i)] / static_cast<double>(options_.global_scale);
      if (scale_type() == DataType::kF8E8m0) {
        scales_.as<uint8_t>()[i] =
            mx_scale_exponent(static_cast<float>(wanted), options_.format, ScaleRounding::kUp);
      } else {
        scales_.set(i, wanted / largest(options_.format));
      }
    }
    if (!options_.zero_points) return;
    zero_points_ = Buffer(DataType::kU8, {rows_, num_groups()});
    for (int64_t i = 0; i < zero_points_.size(); ++i)
      zero_points_.set(i, static_cast<double>(5 + random.below(7)));
  }

  int zero_point(const OwnedMatrix& out, int64_t row, int64_t col) const {
    if (!options_.zero_points) return kInt4ZeroPoint;
    const TensorView& zeros = out.matrix.zero_points;
    return zeros.as<uint8_t>()[row * zeros.stride(0) + group_[static_cast<size_t>(col)]];
  }

  /// The code of one element, as a real number for 16- and 32-bit formats.
  float scaled(const OwnedMatrix& out, int64_t row, int64_t col) const {
    if (!has_scales(options_.format)) return static_cast<float>(value(row, col));
    const double scale = static_cast<double>(load_as_f32(out.matrix.scales.data, scale_type(),
                                                         static_cast<int64_t>(block_of(row, col))));
    const double unit = scale * static_cast<double>(options_.global_scale);
    return unit > 0 ? static_cast<float>(value(row, col) / unit) : 0.0f;
  }

  TensorView store(OwnedMatrix& out) const {
    const bool nibbles = element_bits(options_.format) == 4;
    const DataType type =
        nibbles ? (options_.int32_words ? DataType::kI32 : DataType::kU8) : storage_type();
    const int64_t per_word = nibbles ? 2 * element_bytes(type) : 1;
    const int64_t words = ceil_div(cols_, per_word);
    Buffer stored = options_.transposed ? Buffer::zeros(type, {words, rows_})
                                        : Buffer::zeros(type, {rows_, words});
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) {
        const int64_t word = c / per_word;
        const int64_t at = options_.transposed ? word * rows_ + r : r * words + word;
        const float code = scaled(out, r, c);
        if (nibbles) {
          const int64_t in_word = c % per_word;
          auto* byte = stored.as<uint8_t>() + at * element_bytes(type) + in_word / 2;
          const uint8_t nibble = encode_nibble(options_.format, code, zero_point(out, r, c));
          *byte = static_cast<uint8_t>(*byte | (nibble << (4 * (in_word % 2))));
        } else if (options_.format == Format::kInt8) {
          stored.as<int8_t>()[at] = f32_to_int8(code);
        } else if (options_.format == Format::kFp8E5m2) {
          stored.as<uint8_t>()[at] = encode_fp8_e5m2(code);
        } else {
          stored.set(at, static_cast<double>(code));
        }
      }
    }
    TensorView view = add(out, std::move(stored));
    if (options_.transposed) {
      std::swap(view.shape[0], view.shape[1]);
      std::swap(view.strides[0], view.strides[1]);
    }
    return view;
  }

  DataType storage_type() const {
    switch (options_.format) {
      case Format::kF32: return DataType::kF32;
      case Format::kF16: return DataType::kF16;
      case Format::kBf16: return DataType::kBf16;
      case Format::kInt8: return DataType::kI8;
      case Format::kFp8E5m2: return DataType::kF8E5m2;
      default: return DataType::kF8E4m3;
    }
  }

  static TensorView add(OwnedMatrix& out, Buffer buffer) {
    out.storage.push_back(std::move(buffer));
    return out.storage.back().view();
  }

  MatrixOptions options_;
  int64_t rows_, cols_;
  std::vector<int64_t> group_;  // of each column
  std::vector<double> values_;
  Buffer scales_, zero_points_;
};

MatrixOptions plain_matrix(Format format) {
  MatrixOptions options = usual_matrix(format);
  if (format == Format::kNvfp4) options.global_scale = 0.0078125f;
  return options;
}

}  // namespace

MatrixOptions usual_matrix(Format format) {
  return {.format = format, .scale_block = with_format({}, format).weight_scale_block};
}

OwnedMatrix random_matrix(Random& random, int64_t rows, int64_t cols,
                          const MatrixOptions& options) {
  return MatrixBuilder(random, rows, cols, options).build(random);
}

WeightMatrix RandomWeights::keep(OwnedMatrix owned) {
  for (Buffer& buffer : owned.storage) keep(std::move(buffer));
  return owned.matrix;
}

TensorView RandomWeights::keep(Buffer buffer) {
  storage_.push_back(std::make_unique<Buffer>(std::move(buffer)));
  return storage_.back()->view();
}

ExpertWeights RandomWeights::make_expert(Random& random, const LayerSpec& spec, int64_t width,
                                         int64_t intermediate, const MatrixOptions& matrix,
                                         const WeightsOptions& options) {
  ExpertWeights expert;
  const bool gated = spec.activation.gated();
  if (gated && options.gate_up != GateUpStorage::kSeparate) {
    const bool interleaved = options.gate_up == GateUpStorage::kInterleaved;
    const WeightMatrix both = keep(random_matrix(random, 2 * intermediate, width, matrix));
    expert.gate = matrix_rows(both, 0, interleaved ? 2 : 1, intermediate);
    expert.up =
        matrix_rows(both, interleaved ? 1 : intermediate, interleaved ? 2 : 1, intermediate);
  } else {
    if (gated) expert.gate = keep(random_matrix(random, intermediate, width, matrix));
    expert.up = keep(random_matrix(random, intermediate, width, matrix));
    if (gated) expert.gate.smooth_scales = expert.up.smooth_scales;  // one input meets both
  }
  expert.down = keep(random_matrix(random, width, intermediate, matrix));
  const auto bias = [&](int64_t size) {
    return keep(Buffer::normal(random, options.bias_type, {size}, options.bias_deviation));
  };
  if (options.biases) {
    if (gated) expert.gate_bias = bias(intermediate);
    expert.up_bias = bias(intermediate);
    expert.down_bias = bias(width);
  }
  return expert;
}

RandomWeights::RandomWeights(const LayerSpec& spec, const WeightsOptions& options) {
  Random random(options.seed);
  MatrixOptions routed = options.matrix;
  routed.format = spec.weight_format;
  routed.scale_block = spec.weight_scale_block;
  if (routed.format == Format::kNvfp4 && routed.global_scale == 1.0f)
    routed.global_scale = plain_matrix(Format::kNvfp4).global_scale;
  for (int64_t e = 0; e < spec.num_experts; ++e)
    experts_.push_back(
        make_expert(random, spec, spec.expert_width(), spec.intermediate_size, routed, options));

  const auto vector = [&](bool wanted, double mean, double deviation, int64_t size) {
    if (!wanted) return TensorView{};
    Buffer values = Buffer::normal(random, DataType::kF32, {size}, deviation);
    for (int64_t i = 0; i < size; ++i) values.set(i, mean + values.at(i));
    return keep(std::move(values));
  };
  const MatrixOptions projection = plain_matrix(options.projection_format);
  const int64_t hidden = spec.hidden_size;
  if (spec.shared.intermediate_size > 0) {
    weights_.shared = make_expert(random, spec, hidden, spec.shared.intermediate_size,
                                  plain_matrix(options.shared_format), options);
  }
  if (spec.shared.sigmoid_gate)
    weights_.shared_gate = keep(random_matrix(random, 1, hidden, projection));
  if (spec.latent_size > 0) {
    weights_.latent_down = keep(random_matrix(random, spec.latent_size, hidden, projection));
    weights_.latent_up = keep(random_matrix(random, hidden, spec.latent_size, projection));
    if (spec.latent_norm_epsilon > 0)
      weights_.latent_norm = vector(true, 1.0, 0.2, spec.latent_size);
  }

  RouterWeights& router = weights_.router;
  const int64_t routed_experts = spec.num_routed();
  if (options.router)
    router.projection = keep(random_matrix(random, routed_experts, hidden, projection));
  router.logit_bias = vector(options.logit_bias, 0.0, 0.5, routed_experts);
  router.selection_bias = vector(options.selection_bias, 0.0, 0.3, routed_experts);
  router.per_expert_scale = vector(options.per_expert_scale, 1.0, 0.2, routed_experts);
  router.input_norm_scale = vector(options.input_norm, 1.0, 0.2, hidden);
  router.input_norm_epsilon = options.input_norm ? 1e-6f : 0.0f;
  if (spec.routing.hash) {
    Buffer ids = random_topk_ids(random, options.vocabulary, spec.routed_top_k(), routed_experts);
    Buffer table(DataType::kI64, {options.vocabulary, spec.routed_top_k()});
    for (int64_t i = 0; i < ids.size(); ++i) table.set(i, ids.at(i));
    router.tid2eid = keep(std::move(table));
  }
}

Weights RandomWeights::weights() const {
  Weights weights = weights_;
  weights.experts.num_experts = static_cast<int64_t>(experts_.size());
  weights.experts.load = [this](int64_t e) { return experts_.at(static_cast<size_t>(e)); };
  return weights;
}

Buffer random_topk_ids(Random& random, int64_t num_tokens, int64_t top_k, int64_t num_experts) {
  Buffer ids(DataType::kI32, {num_tokens, top_k});
  std::vector<int32_t> experts(static_cast<size_t>(num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) {  // the first K steps of a shuffle
      std::swap(experts[static_cast<size_t>(k)],
                experts[static_cast<size_t>(k + random.below(num_experts - k))]);
      ids.as<int32_t>()[t * top_k + k] = experts[static_cast<size_t>(k)];
    }
  }
  return ids;
}

Buffer random_topk_weights(Random& random, int64_t num_tokens, int64_t top_k) {
  Buffer weights(DataType::kF32, {num_tokens, top_k});
  for (int64_t t = 0; t < num_tokens; ++t) {
    double sum = 0;
    for (int64_t k = 0; k < top_k; ++k) {
      weights.set(t * top_k + k, random.uniform(0.2, 1.0));
      sum += weights.at(t * top_k + k);
    }
    for (int64_t k = 0; k < top_k; ++k) weights.set(t * top_k + k, weights.at(t * top_k + k) / sum);
  }
  return weights;
}

}  // namespace switchyard::test
