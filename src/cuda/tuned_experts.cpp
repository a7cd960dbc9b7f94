#include "cuda/tuned_experts.h"

#include "cuda/check.h"
#include "cuda/sm90/experts.h"

namespace switchyard::cuda {

std::unique_ptr<TunedExperts> tuned_experts(const LayerSpec& spec, const PackedMatrices& gate_up,
                                            const PackedMatrices& down, int device,
                                            std::string& why_not) {
  if (device_facts(device).capability != 90) {
    why_not = "tuned kernels are for compute capability 9.0";
    return nullptr;
  }
  if (const char* why = sm90::Sm90Experts::why_unsupported(spec, gate_up, down)) {
    why_not = why;
    return nullptr;
  }
  try {
    return std::make_unique<sm90::Sm90Experts>(spec, gate_up, down, device);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    why_not = error.what();
    return nullptr;
  }
}

}  // namespace switchyard::cuda
