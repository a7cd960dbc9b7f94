// Activation and quantisation of a gate_up that was split along K, in one pass over its partial
// sums.

#include <string>

#include "core/expert_sort.h"
#include "cuda/gated_curve.cuh"
#include "cuda/quantize_kernels.cuh"
#include "cuda/small_steps.h"

namespace switchyard::cuda {
namespace {

struct ActivateQuantizeJob : QuantizeJob {
  ActivationSpec activation;
  GatedCurve curve;
  bool interleaved = false;
  int64_t num_parts = 1;    // of the sum
  int64_t part_stride = 0;  // elements from one to the next
  int64_t input_cols = 0;   // 2I, or I without a gate
  const void* bias = nullptr;
  DataType bias_type = DataType::kF32;
  int64_t bias_stride = 0;  // from one expert to the next
};

__device__ __noinline__ float activate_rare(ActivationSpec spec, float gate, float up) {
  return apply_activation(spec, gate, up);
}

/// Activated rows. The usual ones are of type kType, in order kOrder, and their kind is a
/// GatedCurve; the others (kUsual false) are of any type, order and kind. All vectors' loads of a
/// part are in flight at once.
template <bool kUsual, DataType kType, GateUpOrder kOrder>
class ActivatedRows {
 public:
  using Job = ActivateQuantizeJob;
  // Four blocks on an SM although some addresses then wait in local memory: 26.9 to 23.9 us.
  static constexpr int kPerLane = 2, kRowVectors = 1, kBlocksPerSm = 4;
  static constexpr bool kBf16Words = false;

  __device__ static bool pick_row(const Job& job, int64_t r, QuantizeRow& row) {
    row = {r, r, nullptr};
    if (job.sorted_ids == nullptr) return true;
    const int32_t packed = job.sorted_ids[r];
    row.input = static_cast<int64_t>(packed_token(packed)) * job.top_k + packed_slot(packed);
    if (packed_slot(packed) >= job.top_k || row.input >= job.num_input_rows) row.input = -1;
    return true;
  }

  template <int kStep, int kCount>
  __device__ static void load(const Job& job, const QuantizeRow& row, int col, int end,
                              ActivatedRows (&vectors)[kCount]) {
    if (row.input < 0) return;
    const DataType type = kUsual ? kType : job.input_type;
    const int64_t first = row.input * job.input_cols;
    add<kStep, true>(job, job.input, type, first, col, end, vectors);
    for (int64_t part = 1; part < job.num_parts; ++part) {
      add<kStep, false>(job, job.input, type, part * job.part_stride + first, col, end, vectors);
    }
    if (job.bias != nullptr) {
      const int64_t expert =
          job.bias_stride == 0 ? 0 : job.sorted_expert_ids[row.output / job.unit_size];
      add<kStep, false>(job, job.bias, job.bias_type, expert * job.bias_stride, col, end, vectors);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) vectors[i].activate(job);
  }
  __device__ uint32_t amax() const { return largest(up_); }
  __device__ void values(float (&v)[kVector]) const {
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = up_[j];
  }

 private:
  /// Adds numbers of `data`, whose row begins at element `first`; kFirst: puts them there.
  template <int kStep, bool kFirst, int kCount>
  __device__ static void add(const Job& job, const void* data, DataType type, int64_t first,
                             int col, int end, ActivatedRows (&vectors)[kCount]) {
    // Concatenated: eight gates, eight ups. Interleaved: sixteen neighbours.
    const bool gated = kUsual || job.input_cols != job.cols;
    const bool interleaved = kUsual ? kOrder == GateUpOrder::kInterleaved : job.interleaved;
    const int64_t at = first + (interleaved ? 2 * col : col);
    const int64_t to_second = interleaved ? kVector : gated ? job.cols : 0;
    const int step = interleaved ? 2 * kStep : kStep;
    RawVector raw[kCount][2];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (col + i * kStep >= end) continue;
      raw[i][0] = load_raw(data, type, at + i * step);
      raw[i][1] = load_raw(data, type, at + i * step + to_second);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (col + i * kStep >= end) continue;
      float v[2][kVector];
      unpack(raw[i][0], type, v[0]);
      unpack(raw[i][1], type, v[1]);
      if (interleaved) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const float* pair = v[2 * j / kVector] + 2 * j % kVector;
          put<kFirst>(vectors[i].gate_[j], pair[0]);
          put<kFirst>(vectors[i].up_[j], pair[1]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          put<kFirst>(vectors[i].gate_[j], v[0][j]);
          put<kFirst>(vectors[i].up_[j], v[1][j]);
        }
      }
    }
  }
  template <bool kFirst>
  __device__ static void put(float& sum, float value) {
    sum = kFirst ? value : sum + value;
  }
  /// Leaves the intermediate in up_.
  __device__ void activate(const Job& job) {
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) up_[j] = f(gate_[j], up_[j]);
    };
    if (job.activation.kind == Activation::kSwiGlu) {
      each([](float g, float u) { return swiglu(g, u); });
    } else if (kUsual || is_curve(job.activation.kind)) {
      each([&](float g, float u) { return gated_value(job.curve, g, u); });
    } else {
      each([&](float g, float u) { return activate_rare(job.activation, g, u); });
    }
  }

  float gate_[kVector] = {}, up_[kVector] = {};
};

template <DataType kType>
OnePassKernels<ActivateQuantizeJob> usual_kernels(const ActivateQuantizeJob& job) {
  return job.interleaved
             ? one_pass_kernels<ActivatedRows<true, kType, GateUpOrder::kInterleaved>>(job.format)
             : one_pass_kernels<ActivatedRows<true, kType, GateUpOrder::kConcatenated>>(job.format);
}
OnePassKernels<ActivateQuantizeJob> kernels_of(const ActivateQuantizeJob& job) {
  const bool curve = is_curve(job.activation.kind);
  if (curve && job.input_type == DataType::kBf16) return usual_kernels<DataType::kBf16>(job);
  if (curve && job.input_type == DataType::kF32) return usual_kernels<DataType::kF32>(job);
  return one_pass_kernels<ActivatedRows<false, DataType::kF32, GateUpOrder::kConcatenated>>(
      job.format);
}

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
  job.curve = curve_of(args.activation);
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
  const bool done = quantize_in_one_pass(kernels_of(job), job, num_rows,
                                         static_cast<cudaStream_t>(stream.handle));
  require(done, "scale_block.cols is " + std::to_string(job.scale_block.cols) +
                    "; cuda takes whole rows of up to 8192 columns, 1 x 32, 64, 128 or 256, and "
                    "for nvfp4 1 x 16");
}

}  // namespace switchyard::cuda
