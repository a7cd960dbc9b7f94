#pragma once
// What each ActivationFormat stores, and what kAuto means on each backend.

#include "core/host_device.h"
#include "switchyard/layer_spec.h"
#include "switchyard/tensor.h"

namespace switchyard {

/// Element format and scale block of quantised activations; rows are tokens or (token, slot) pairs.
struct ActivationStorage {
  Format format = Format::kF32;
  ScaleBlock scale_block{};
};

/// Meaningless for kAuto and kNone, which round nothing.
constexpr ActivationStorage activation_storage(ActivationFormat format) {
  switch (format) {
    case ActivationFormat::kInt8Block32: return {Format::kInt8, {1, 32}};
    case ActivationFormat::kInt8PerToken:
    case ActivationFormat::kInt8PerSlot: return {Format::kInt8, {1, 0}};
    case ActivationFormat::kFp8PerTensor: return {Format::kFp8E4m3, {0, 0}};
    case ActivationFormat::kFp8PerToken: return {Format::kFp8E4m3, {1, 0}};
    case ActivationFormat::kFp8Block128: return {Format::kFp8E4m3, {1, 128}};
    case ActivationFormat::kMxfp8: return {Format::kMxfp8, {1, 32}};
    case ActivationFormat::kMxfp4: return {Format::kMxfp4, {1, 32}};
    default: return {};
  }
}

/// The format a backend uses for this layer. On the CPU the 8-bit dot product is four times the
/// fp32 FMA rate, so weights that are integers in disguise (4-bit, INT8) meet INT8 activations. A
/// GPU's matrix unit multiplies 8-bit weights with 8-bit activations only; 4-bit weights turn into
/// bf16 exactly, so they keep the activations as given.
constexpr ActivationFormat resolved_activation_format(const LayerSpec& spec, BackendKind backend) {
  if (spec.activation_format != ActivationFormat::kAuto) return spec.activation_format;
  const Format weights = spec.weight_format;
  const ScaleBlock block = spec.weight_scale_block;
  if (backend == BackendKind::kCpu) {
    const bool integers = element_bits(weights) == 4 || weights == Format::kInt8;
    return integers ? ActivationFormat::kInt8Block32 : ActivationFormat::kNone;
  }
  if (backend == BackendKind::kCuda) {
    const bool per_row = block.cols == 0;  // or one for all rows
    if (weights == Format::kInt8 && per_row) return ActivationFormat::kInt8PerToken;
    if (weights == Format::kFp8E4m3 && per_row) return ActivationFormat::kFp8PerToken;
    if (weights == Format::kFp8E4m3 && block.cols == 128) return ActivationFormat::kFp8Block128;
  }
  return ActivationFormat::kNone;
}

/// Whether a backend may round the weights as well: NVFP4 with its scales has six significant bits,
/// so where Hopper multiplies it by E4M3 it becomes E4M3, each weight within 1/21 of itself. kAuto
/// never asks for that.
constexpr bool rounds_weights(const LayerSpec& spec, BackendKind backend) {
  return backend == BackendKind::kCuda && spec.weight_format == Format::kNvfp4 &&
         (spec.activation_format == ActivationFormat::kFp8PerToken ||
          spec.activation_format == ActivationFormat::kFp8PerTensor);
}

}  // namespace switchyard
