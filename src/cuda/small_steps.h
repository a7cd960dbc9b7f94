#pragma once
// The steps that only the public ops and the layer's edges need.

#include "backend.h"
#include "cuda/token_count.h"

namespace switchyard::cuda {

void activate(const ops::ActivateArgs& args, Stream stream);
void activate_quantize(const ops::ActivateQuantizeArgs& args, Stream stream);
void append_shared(const AppendSharedArgs& args, Stream stream);
void rms_norm(const RmsNormArgs& args, Stream stream);

}  // namespace switchyard::cuda
