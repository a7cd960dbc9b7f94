#pragma once
// The static facts of one MoE block, as values: sizes, routing, activation, formats.

#include <cstdint>
#include <string>

#include "switchyard/export.h"

namespace switchyard {

/// How numbers are stored. Block scales are described beside it (ScaleBlock).
enum class Format : int32_t {
  kF32 = 0,
  kF16 = 1,
  kBf16 = 2,
  kFp8E4m3 = 3,  ///< OCP E4M3 with f32 or E8M0 scales per tensor, channel or block
  kFp8E5m2 = 4,  ///< OCP E5M2, decode only
  kInt8 = 5,     ///< two's complement, scale per channel, token or group
  kInt4 = 6,     ///< unsigned nibble minus 8 (or minus a zero point), scale per group of 32 or 128
  kMxfp4 = 7,    ///< OCP MX: E2M1, E8M0 scale per 32 along K
  kMxfp8 = 8,    ///< OCP MX: E4M3, E8M0 scale per 32 along K
  kNvfp4 = 9,    ///< E2M1, E4M3 scale per 16 along K, f32 global scale
};

/// "bf16", "mxfp4", ...; the names the CLI accepts.
SWITCHYARD_EXPORT const char* to_string(Format format) noexcept;
/// Inverse of to_string. Throws Error{kInvalidArgument} naming the accepted names.
SWITCHYARD_EXPORT Format format_from_string(const std::string& name);

/// Bits of one stored element, scales not counted.
constexpr int element_bits(Format format) noexcept {
  switch (format) {
    case Format::kF32: return 32;
    case Format::kF16:
    case Format::kBf16: return 16;
    case Format::kInt4:
    case Format::kMxfp4:
    case Format::kNvfp4: return 4;
    default: return 8;
  }
}

/// Elements that share one scale: rows along N (outputs), cols along K (inputs). 0 means the whole
/// extent, so {0,0} is per tensor, {1,0} per output channel, {128,128} DeepSeek's blocks, {1,32}
/// MX.
struct ScaleBlock {
  int64_t rows = 0;
  int64_t cols = 0;
  bool operator==(const ScaleBlock&) const = default;
};

/// How activations are stored when they meet the weights, in both GEMMs.
enum class ActivationFormat : int32_t {
  kAuto = 0,         ///< the backend's choice (docs/numerics.md), printed by the plan
  kNone = 1,         ///< as given (bf16, f16 or f32); nothing is rounded before the product
  kInt8Block32 = 2,  ///< int8, f32 scale per 32 along K
  kInt8PerToken = 3,
  kInt8PerSlot = 4,  ///< SmoothQuant: per (token, slot) after a per-expert channel scale
  kFp8PerTensor = 5,
  kFp8PerToken = 6,
  kFp8Block128 = 7,  ///< E4M3, f32 scale per 1x128
  kMxfp8 = 8,
  kMxfp4 = 9,
};
SWITCHYARD_EXPORT const char* to_string(ActivationFormat format) noexcept;
SWITCHYARD_EXPORT ActivationFormat activation_format_from_string(const std::string& name);

/// Exponent of an E8M0 scale (docs/numerics.md).
enum class ScaleRounding : int32_t {
  kDown = 0,  ///< floor(log2(amax)) - emax: may clip, the OCP recipe
  kUp = 1,    ///< smallest power of two >= amax / max: never clips (default)
  kEven = 2,  ///< amax rounded to the element's mantissa first, then as kDown
  kCeil = 3,  ///< ceil(log2(amax)) - emax
};

/// Function of a router logit that becomes the score.
enum class Scoring : int32_t { kSoftmax = 0, kSigmoid = 1, kSqrtSoftplus = 2 };
SWITCHYARD_EXPORT const char* to_string(Scoring scoring) noexcept;

/// How the best groups are found when num_groups > 1.
enum class GroupScore : int32_t {
  kTop2Sum = 0,  ///< sum of the two best biased scores (DeepSeek-V3)
  kMax = 1,      ///< best score (DeepSeek-V2)
};

/// Everything that decides topk_ids and topk_weights from router logits.
///
/// score = scoring(logit + logit_bias); selection = top-k of (score + selection_bias) among the
/// kept groups, ties to the lower index; weight = score of the chosen, without selection_bias;
/// divided by their sum when `renormalize`; times routed_scaling_factor; times per_expert_scale
/// when there is one. Softmax with renormalize equals "top-k of the logits, then softmax over the
/// chosen".
struct RoutingSpec {
  Scoring scoring = Scoring::kSoftmax;
  bool renormalize = true;
  float renormalize_epsilon = 0.0f;  ///< added to the sum; 1e-20 in DeepSeek-style models
  int32_t num_groups = 1;
  int32_t topk_groups = 1;
  GroupScore group_score = GroupScore::kTop2Sum;
  float routed_scaling_factor = 1.0f;
  bool hash = false;  ///< experts come from tid2eid[input_id]; weights still from the scores
  bool operator==(const RoutingSpec&) const = default;
};

/// Function between the two GEMMs; g is the gate half, u the up half.
enum class Activation : int32_t {
  kSwiGlu = 0,       ///< silu(g) * u
  kSwiGluClamp = 1,  ///< silu(min(g, limit)) * clamp(u, -limit, limit)
  kSwiGluOai = 2,    ///< g' = min(g, limit), u' = clamp(u): g' * sigmoid(alpha g') * (u' + 1)
  kGeGluTanh = 3,    ///< gelu_tanh(g) * u
  kGeGlu = 4,        ///< gelu(g) * u with erf
  kSiTu = 5,         ///< beta tanh(g / beta) sigmoid(g) * linear_beta tanh(u / linear_beta)
  kRelu2 = 6,        ///< max(0, u)^2, no gate matrix
};
SWITCHYARD_EXPORT const char* to_string(Activation activation) noexcept;

struct ActivationSpec {
  Activation kind = Activation::kSwiGlu;
  float alpha = 1.702f;       ///< kSwiGluOai
  float limit = 7.0f;         ///< kSwiGluClamp, kSwiGluOai
  float beta = 4.0f;          ///< kSiTu
  float linear_beta = 25.0f;  ///< kSiTu; 0 leaves u as it is
  bool operator==(const ActivationSpec&) const = default;
  constexpr bool gated() const { return kind != Activation::kRelu2; }
};

/// Where the routing weight multiplies.
enum class WeightPosition : int32_t {
  kOutput = 0,  ///< on the expert's output
  kInput = 1,   ///< on the expert's input, before gate/up (Llama-4)
};

/// Experts that every token visits.
struct SharedExpertSpec {
  int64_t intermediate_size = 0;  ///< summed over the shared experts; 0 = none
  bool sigmoid_gate = false;      ///< output times sigmoid(x . shared_gate) (Qwen)
  bool operator==(const SharedExpertSpec&) const = default;
};

/// The static facts of a layer. H = hidden_size, I = intermediate_size, E = num_experts, K = top_k.
struct LayerSpec {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  int64_t hidden_size = 0;        ///< of the block's input and output
  int64_t intermediate_size = 0;  ///< inside one routed expert
  int64_t latent_size =
      0;  ///< width that routed experts see when it is not H (Nemotron-3, Kimi-K3); 0 = H
  RoutingSpec routing{};
  ActivationSpec activation{};
  SharedExpertSpec shared{};
  /// Trailing experts that every token takes with weight fused_shared_weight: E counts them, and so
  /// does K.
  int64_t num_fused_shared = 0;
  float fused_shared_weight = 1.0f;
  WeightPosition weight_position = WeightPosition::kOutput;
  Format weight_format = Format::kBf16;
  ScaleBlock weight_scale_block{};
  ActivationFormat activation_format = ActivationFormat::kAuto;
  float latent_norm_epsilon = 0.0f;  ///< of the RMS norm before the latent up projection

  constexpr int64_t expert_width() const { return latent_size > 0 ? latent_size : hidden_size; }
  constexpr int64_t num_routed() const { return num_experts - num_fused_shared; }
  constexpr int64_t routed_top_k() const { return top_k - num_fused_shared; }
  bool operator==(const LayerSpec&) const = default;
};

/// Largest sizes the library accepts (the sort contract packs slots in 7 and tokens in 24 bits).
inline constexpr int64_t kMaxExperts = 4096;
inline constexpr int64_t kMaxTopK = 127;
inline constexpr int64_t kMaxWidth = int64_t{1} << 20;  ///< of hidden, intermediate and latent
inline constexpr int64_t kMaxTokens = (int64_t{1} << 24) - 1;

}  // namespace switchyard
