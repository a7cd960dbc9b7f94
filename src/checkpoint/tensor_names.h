#pragma once
// The grammar of tensor names: <stack>layers.<L>.<block><matrix><part>, for every naming family.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard {

/// A place in the MoE block that a matrix or vector fills. kExpert* come once per expert.
enum class Slot : uint8_t {
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kFusedGateUp,  ///< [E, 2I, H] or [E, H, 2I]
  kFusedUp,      ///< non-gated [E, I, H]
  kFusedDown,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  kSharedGateUp,
  kSharedSigmoid,  ///< shared_expert_gate [1, H]
  kRouter,
  kLogitBias,
  kSelectionBias,
  kTid2eid,
  kPerExpertScale,
  kRouterNormScale,
  kLatentDown,
  kLatentNorm,
  kLatentUp,
};
inline constexpr size_t kNumSlots = 20;
inline constexpr size_t kNumExpertSlots = 3;
constexpr uint32_t slot_bit(Slot slot) { return 1u << static_cast<unsigned>(slot); }

/// A tensor of a matrix.
enum class Part : uint8_t {
  kValues,         ///< weight, or the fused tensor itself
  kPacked,         ///< weight_packed (compressed-tensors)
  kBlocks,         ///< _blocks (gpt-oss)
  kQweight,        ///< qweight (GPTQ, AWQ)
  kScale,          ///< weight_scale, weight_scale_inv, scale, scales: all multiply
  kGlobalScale,    ///< weight_scale_2: multiplies
  kGlobalDivisor,  ///< weight_global_scale: divides
  kZeroPoint,
  kGroupIndex,
  kBias,
  kIgnored,  ///< of activations or caches, or a copy of the shape
};
inline constexpr size_t kNumParts = 11;

struct LayerName {
  std::string_view stack;  ///< "model.layers.", ...
  int64_t layer = 0;
  std::string_view rest;  ///< after "<L>."
};
/// Empty for a tensor outside the text model's layers.
std::optional<LayerName> parse_layer_name(std::string_view name);

struct BlockName {
  std::string_view block;  ///< "mlp.", ...; empty when the block has no name of its own (Gemma-4)
  std::string_view rest;
};
/// The MoE block a tensor would belong to; empty for attention, norms and the like.
std::optional<BlockName> parse_block_name(std::string_view rest);

struct TensorName {
  Slot slot = Slot::kRouter;
  Part part = Part::kValues;
  int64_t expert = -1;  ///< for kExpert*
};
/// Empty when the block has no such tensor.
std::optional<TensorName> parse_tensor_name(const BlockName& name);

/// "B: mlp per expert", ... from what was found.
std::string family_name(std::string_view block, bool fused, bool k_major, bool blocks);
/// The usual name of a slot below its block, for messages about tensors that are not there.
std::string usual_name(std::string_view block, Slot slot, int64_t expert);

}  // namespace switchyard
