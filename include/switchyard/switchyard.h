#pragma once
// Everything public.

#include "switchyard/calibrate.h"
#include "switchyard/checkpoint.h"
#include "switchyard/device_memory.h"
#include "switchyard/error.h"
#include "switchyard/layer.h"
#include "switchyard/layer_spec.h"
#include "switchyard/models.h"
#include "switchyard/ops.h"
#include "switchyard/plan.h"
#include "switchyard/tensor.h"
#include "switchyard/verify.h"
#include "switchyard/weights.h"
