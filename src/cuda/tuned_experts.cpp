#include "cuda/tuned_experts.h"

#include "cuda/check.h"

namespace switchyard::cuda {

std::unique_ptr<TunedExperts> tuned_experts(const LayerSpec& /*spec*/,
                                            const PackedMatrices& /*gate_up*/,
                                            const PackedMatrices& /*down*/, int device,
                                            std::string& why_not) {
  if (device_facts(device).capability != 90) {
    why_not = "tuned kernels are for compute capability 9.0";
    return nullptr;
  }
  why_not = "no tuned kernel for this format";
  return nullptr;
}

}  // namespace switchyard::cuda
