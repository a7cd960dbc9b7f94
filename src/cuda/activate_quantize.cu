// Activation and quantisation of a gate_up that was split along K, in one pass over its partial
// sums.

#include <string>

#include "core/activation.h"
#include "core/expert_sort.h"
#include "cuda/quantize_kernels.cuh"
#include "cuda/small_steps.h"

namespace switchyard::cuda {
namespace {

struct ActivateQuantizeJob : QuantizeJob {
  ActivationSpec activation;
  bool interleaved = false;
  int64_t num_parts = 1;    // of the sum
  int64_t part_stride = 0;  // elements from one to the next
  int64_t input_cols = 0;   // 2I, or I without a gate
  const void* bias = nullptr;
  DataType bias_type = DataType::kF32;
  int64_t bias_stride = 0;  // from one expert to the next
};

/// The kinds that production models mostly have; the others share one function, which is called.
__device__ __noinline__ float activate_any(ActivationSpec spec, float gate, float up) {
  return apply_activation(spec, gate, up);
}
template <Activation kKind>
__device__ void activate_as(ActivationSpec spec, const float (&gate)[kVector],
                            float (&up)[kVector]) {
  spec.kind = kKind;
#pragma unroll
  for (int j = 0; j < kVector; ++j) up[j] = apply_activation(spec, gate[j], up[j]);
}
__device__ void activate_vector(const ActivationSpec& spec, const float (&gate)[kVector],
                                float (&up)[kVector]) {
  switch (spec.kind) {
    case Activation::kSwiGlu: return activate_as<Activation::kSwiGlu>(spec, gate, up);
    case Activation::kSwiGluOai: return activate_as<Activation::kSwiGluOai>(spec, gate, up);
    case Activation::kRelu2: return activate_as<Activation::kRelu2>(spec, gate, up);
    default:
#pragma unroll
      for (int j = 0; j < kVector; ++j) up[j] = activate_any(spec, gate[j], up[j]);
  }
}

__device__ void add_to(float (&sum)[kVector], const float (&v)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum[j] = sum[j] + v[j];
}

/// Activated rows; `channel_scale` of a row is its expert, as a number of floats.
class ActivatedRows {
 public:
  using Job = ActivateQuantizeJob;
  __device__ static bool pick_row(const Job& job, int64_t r, QuantizeRow& row) {
    row = {r, r, nullptr};
    if (job.sorted_ids == nullptr) return true;
    const int32_t packed = job.sorted_ids[r];
    row.input = static_cast<int64_t>(packed_token(packed)) * job.top_k + packed_slot(packed);
    if (packed_slot(packed) >= job.top_k || row.input >= job.num_input_rows) row.input = -1;
    return true;
  }
  __device__ void load(const Job& job, const QuantizeRow& row, int col) {
    if (row.input < 0 || col >= job.cols) return;
    for (int64_t part = 0; part < job.num_parts; ++part) {
      float gate[kVector], up[kVector];
      load_gate_up(job, job.input, job.input_type,
                   part * job.part_stride + row.input * job.input_cols, col, gate, up);
      if (part == 0) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          gate_[j] = gate[j];
          up_[j] = up[j];
        }
      } else {
        add_to(gate_, gate);
        add_to(up_, up);
      }
    }
    if (job.bias == nullptr) return;
    const int64_t expert =
        job.bias_stride == 0 ? 0 : job.sorted_expert_ids[row.output / job.unit_size];
    float gate[kVector], up[kVector];
    load_gate_up(job, job.bias, job.bias_type, expert * job.bias_stride, col, gate, up);
    add_to(gate_, gate);
    add_to(up_, up);
  }
  __device__ uint32_t amax(const Job& job, const QuantizeRow& row, int col) {
    if (row.input < 0 || col >= job.cols) return 0;
    activate_vector(job.activation, gate_, up_);
    return largest(up_);
  }
  __device__ void values(const Job&, const QuantizeRow&, int, float (&v)[kVector]) const {
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = up_[j];
  }

 private:
  __device__ static void load_gate_up(const Job& job, const void* data, DataType type,
                                      int64_t first, int col, float (&gate)[kVector],
                                      float (&up)[kVector]) {
    if (job.interleaved) {
      float pairs[2][kVector];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        unpack(load_raw(data, type, first + 2 * col + half * kVector), type, pairs[half]);
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        gate[j] = pairs[2 * j / kVector][2 * j % kVector];
        up[j] = pairs[2 * j / kVector][2 * j % kVector + 1];
      }
      return;
    }
    const bool gated = job.input_cols != job.cols;
    const RawVector raw = load_raw(data, type, first + col);
    if (!gated) {
      unpack(raw, type, up);
#pragma unroll
      for (float& g : gate) g = 0.0f;
      return;
    }
    const RawVector raw_up = load_raw(data, type, first + job.cols + col);
    unpack(raw, type, gate);
    unpack(raw_up, type, up);
  }

  float gate_[kVector] = {}, up_[kVector] = {};
};

void require(bool holds, const std::string& what) {
  if (!holds) throw Error(ErrorCode::kUnsupported, what);
}

}  // namespace

void activate_quantize(const ops::ActivateQuantizeArgs& args, Stream stream) {
  const ops::QuantizeArgs& to = args.quantized;
  ActivateQuantizeJob job;
  job.input = args.input.data;
  job.input_type = args.input.type;
  job.num_input_rows = args.input.extent(1);
  job.input_cols = args.input.extent(2);
  job.cols = args.activation.gated() ? job.input_cols / 2 : job.input_cols;
  job.sorted_ids = args.sorted_ids.as<const int32_t>();
  job.sorted_expert_ids = args.sorted_expert_ids.as<const int32_t>();
  job.unit_size = static_cast<int32_t>(args.unit_size);
  job.top_k = static_cast<int32_t>(args.top_k);
  job.format = to.format;
  job.scale_block = to.scale_block;
  job.rounding = to.rounding;
  job.power_of_two_scales = to.power_of_two_scales;
  job.global_scale = to.global_scale;
  job.values = to.values.data;
  job.value_row_bytes = to.values.stride(0);
  job.scales = to.scales.data;
  job.scale_type = to.scales.type;
  job.activation = args.activation;
  job.interleaved = args.activation.gated() && args.order == GateUpOrder::kInterleaved;
  job.num_parts = args.input.extent(0);
  job.part_stride = job.num_input_rows * job.input_cols;
  job.bias = args.bias.data;
  job.bias_type = args.bias.type;
  job.bias_stride = args.bias.rank == 2 ? job.input_cols : 0;
  const int64_t num_rows = to.values.extent(0);
  if (num_rows == 0 || job.cols == 0) return;
  require(job.cols % kVector == 0,
          "the intermediate size is " + std::to_string(job.cols) + "; cuda needs a multiple of 8");
  const bool aligned = vectors_aligned(job.input, job.cols, job.input_type) &&
                       vectors_aligned(job.bias, job.cols, job.bias_type) &&
                       job.value_row_bytes % element_bits(job.format) == 0 &&
                       reinterpret_cast<uintptr_t>(job.values) % 8 == 0;
  require(aligned, "input, bias or values is not aligned; cuda needs multiples of 16 bytes");
  const bool done = quantize_in_one_pass(one_pass_kernels<ActivatedRows>(job.format), job, num_rows,
                                         static_cast<cudaStream_t>(stream.handle));
  require(done, "scale_block.cols is " + std::to_string(job.scale_block.cols) +
                    "; cuda takes whole rows of up to 8192 columns, 1 x 32, 64, 128 or 256, and "
                    "for nvfp4 1 x 16");
}

}  // namespace switchyard::cuda
