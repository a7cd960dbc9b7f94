#pragma once
// The limits of a GPU, measured.

#include "switchyard/calibrate.h"

namespace switchyard::cuda {

Calibration calibrate(int device);

}  // namespace switchyard::cuda
