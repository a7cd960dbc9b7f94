#include "cuda/sm90/fp4_experts.h"

#include "cuda/check.h"

namespace switchyard::cuda::sm90 {

FragmentOrder fragment_order(ActivationFormat activations, const WeightMatrix& up,
                             const WeightMatrix& down, int device) {
  if (device_facts(device).capability != 90) return FragmentOrder::kRowMajor;
  if (!has_fragment_order(up) || !has_fragment_order(down)) return FragmentOrder::kRowMajor;
  if (up.format != Format::kMxfp4) {  // INT4, NVFP4: only bf16 keeps their scales exact
    const bool plain = activations == ActivationFormat::kNone;
    return plain ? FragmentOrder::kBf16 : FragmentOrder::kRowMajor;
  }
  switch (activations) {
    case ActivationFormat::kNone: return FragmentOrder::kBf16;
    case ActivationFormat::kFp8PerTensor:
    case ActivationFormat::kFp8PerToken:
    case ActivationFormat::kFp8Block128:
    case ActivationFormat::kMxfp8:
    case ActivationFormat::kMxfp4: return FragmentOrder::kFp8;
    default: return FragmentOrder::kRowMajor;
  }
}

}  // namespace switchyard::cuda::sm90
