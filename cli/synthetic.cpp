#include "cli/synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "cli/random.h"
#include "switchyard/error.h"

namespace switchyard::cli {
namespace {

/// Random bits of one element: (random & keep) | set. Never NaN, infinite or denormal.
struct BitPattern {
  uint32_t keep = 0;
  uint32_t set = 0;
};

BitPattern value_pattern(DataType type) {
  switch (type) {
    case DataType::kF32: return {0x81ffffffu, 0x3c000000u};  // +-2^-7 .. 2^-3
    case DataType::kBf16: return {0x81ffu, 0x3c00u};         // the same
    case DataType::kF16: return {0x8fffu, 0x2000u};          // the same
    case DataType::kF8E4m3:
    case DataType::kF8E5m2: return {0xbfu, 0};  // below 2
    default: return {0xffu, 0};                 // integers and 4-bit codes: all are numbers
  }
}

BitPattern scale_pattern(DataType type) {
  switch (type) {
    case DataType::kF32: return {0x01ffffffu, 0x3a000000u};  // 2^-11 .. 2^-7
    case DataType::kBf16: return {0x01ffu, 0x3a00u};         // the same
    case DataType::kF8E4m3: return {0x0fu, 0x28u};           // 0.25 .. 1
    default: return {0x03u, 0x78u};                          // E8M0: 2^-7 .. 2^-4
  }
}

void fill(const HostTensor& tensor, BitPattern pattern, Random& random) {
  const int64_t width = element_bytes(tensor.view().type);
  uint64_t keep = 0;
  uint64_t set = 0;
  for (int64_t shift = 0; shift < 64; shift += 8 * width) {
    keep |= uint64_t{pattern.keep} << shift;
    set |= uint64_t{pattern.set} << shift;
  }
  auto* bytes = tensor.as<std::byte>();
  for (int64_t begin = 0; begin < tensor.bytes(); begin += 8) {
    const uint64_t word = (random.bits() & keep) | set;
    std::memcpy(bytes + begin, &word,
                static_cast<size_t>(std::min<int64_t>(8, tensor.bytes() - begin)));
  }
}

DataType value_type(Format format) {
  switch (format) {
    case Format::kF32: return DataType::kF32;
    case Format::kF16: return DataType::kF16;
    case Format::kBf16: return DataType::kBf16;
    case Format::kFp8E4m3:
    case Format::kMxfp8: return DataType::kF8E4m3;
    case Format::kFp8E5m2: return DataType::kF8E5m2;
    case Format::kInt8: return DataType::kI8;
    case Format::kInt4:
    case Format::kMxfp4:
    case Format::kNvfp4: break;
  }
  return DataType::kU8;
}

DataType scale_type(Format format) {
  switch (format) {
    case Format::kMxfp4:
    case Format::kMxfp8: return DataType::kF8E8m0;
    case Format::kNvfp4: return DataType::kF8E4m3;
    case Format::kInt4: return DataType::kBf16;
    default: return DataType::kF32;
  }
}

int64_t blocks(int64_t extent, int64_t block) {
  return block == 0 ? 1 : (extent + block - 1) / block;
}

int64_t matrix_bytes(const LayerSpec& spec, int64_t rows, int64_t cols) {
  const Format format = spec.weight_format;
  const int64_t values = rows * ((cols * element_bits(format) + 7) / 8);
  if (element_bits(format) >= 16) return values;
  const ScaleBlock block = spec.weight_scale_block;
  return values +
         blocks(rows, block.rows) * blocks(cols, block.cols) * element_bytes(scale_type(format));
}

}  // namespace

int64_t expert_bytes(const LayerSpec& spec, bool biases) {
  const int64_t num_inner = spec.activation.gated() ? 2 : 1;
  const int64_t inner = spec.intermediate_size;
  const int64_t width = spec.expert_width();
  const int64_t bias_bytes = biases ? 2 * (num_inner * inner + width) : 0;
  return num_inner * matrix_bytes(spec, inner, width) + matrix_bytes(spec, width, inner) +
         bias_bytes;
}

ExpertWeights SyntheticLayer::Expert::view() const {
  return {.gate = gate.view,
          .up = up.view,
          .down = down.view,
          .gate_bias = gate_bias.view(),
          .up_bias = up_bias.view(),
          .down_bias = down_bias.view()};
}

SyntheticLayer::Matrix SyntheticLayer::make_matrix(Format format, ScaleBlock block, int64_t rows,
                                                   int64_t cols, Random& random) {
  const int64_t elements_per_byte = element_bits(format) == 4 ? 2 : 1;
  if (cols % elements_per_byte != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--format is {}; its matrices need an even number of columns, not {}",
                            to_string(format), cols));
  }
  Matrix matrix;
  matrix.values = HostTensor(value_type(format), {rows, cols / elements_per_byte});
  fill(matrix.values, value_pattern(value_type(format)), random);
  matrix.view = {.format = format, .rows = rows, .cols = cols, .values = matrix.values.view()};
  if (element_bits(format) < 16) {
    matrix.scales =
        HostTensor(scale_type(format), {blocks(rows, block.rows), blocks(cols, block.cols)});
    fill(matrix.scales, scale_pattern(scale_type(format)), random);
    matrix.view.scales = matrix.scales.view();
    matrix.view.scale_block = block;
  }
  if (format == Format::kNvfp4) matrix.view.global_scale = 0x1p-5f;
  return matrix;
}

SyntheticLayer::Expert SyntheticLayer::make_expert(int64_t width, int64_t intermediate_size,
                                                   bool biases, Random& random) const {
  const auto matrix = [&](int64_t rows, int64_t cols) {
    Matrix m = make_matrix(spec_.weight_format, spec_.weight_scale_block, rows, cols, random);
    if (zero_points_) {
      m.zero_points =
          HostTensor(DataType::kU8, {rows, blocks(cols, spec_.weight_scale_block.cols)});
      fill(m.zero_points, {0x07u, 0x04u}, random);  // 4 .. 7
      m.view.zero_points = m.zero_points.view();
    }
    return m;
  };
  const auto bias = [&](int64_t size) {
    HostTensor tensor(DataType::kBf16, {size});
    fill(tensor, value_pattern(DataType::kBf16), random);
    return tensor;
  };
  const bool gated = spec_.activation.gated();
  Expert expert;
  if (gated) expert.gate = matrix(intermediate_size, width);
  expert.up = matrix(intermediate_size, width);
  expert.down = matrix(width, intermediate_size);
  if (biases) {
    if (gated) expert.gate_bias = bias(intermediate_size);
    expert.up_bias = bias(intermediate_size);
    expert.down_bias = bias(width);
  }
  return expert;
}

SyntheticLayer::SyntheticLayer(const ModelShape& shape, const LayerSpec& spec, uint64_t seed,
                               bool zero_points)
    : spec_(spec), zero_points_(zero_points) {
  constexpr int64_t kContentBytes = 256 << 20;
  constexpr int64_t kMaxContents = 4;
  Random random(seed);
  const int64_t num_contents =
      std::min({std::max<int64_t>(kContentBytes / expert_bytes(spec, shape.biases), 1),
                kMaxContents, spec.num_experts});
  for (int64_t e = 0; e < num_contents; ++e) {
    experts_.push_back(
        make_expert(spec.expert_width(), spec.intermediate_size, shape.biases, random));
  }
  router_ = make_matrix(Format::kBf16, {}, spec.num_routed(), spec.hidden_size, random);
  if (shape.selection_bias) selection_bias_ = HostTensor(DataType::kF32, {spec.num_routed()});
  if (spec.shared.intermediate_size > 0) {
    shared_ = make_expert(spec.hidden_size, spec.shared.intermediate_size, false, random);
  }
  if (spec.shared.sigmoid_gate) {
    shared_gate_ = make_matrix(Format::kBf16, {}, 1, spec.hidden_size, random);
  }
  if (spec.latent_size > 0) {
    latent_down_ = make_matrix(Format::kBf16, {}, spec.latent_size, spec.hidden_size, random);
    latent_up_ = make_matrix(Format::kBf16, {}, spec.hidden_size, spec.latent_size, random);
  }
}

Weights SyntheticLayer::weights() const {
  Weights weights;
  weights.experts.num_experts = spec_.num_experts;
  weights.experts.load = [this](int64_t expert) {
    return experts_[static_cast<size_t>(expert) % experts_.size()].view();
  };
  weights.router.projection = router_.view;
  weights.router.selection_bias = selection_bias_.view();
  weights.shared = shared_.view();
  weights.shared_gate = shared_gate_.view;
  weights.latent_down = latent_down_.view;
  weights.latent_up = latent_up_.view;
  return weights;
}

}  // namespace switchyard::cli
