// Quantisation of rows, in parallel over rows. Bits do not depend on the number of threads: maxima
// commute, and a code depends on its own block alone.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "core/block_quantize.h"
#include "core/scale_layout.h"
#include "cpu/quantize_kernels.h"
#include "cpu/steps.h"
#include "cpu/thread_pool.h"

namespace switchyard::cpu {

namespace {

// Blocks (and about as many columns) of a row at a time: maxima and inverses take 8 KiB each on the
// stack, and the second pass over the inputs finds them in L1.
constexpr int64_t kMaxBlocks = 2048;
// Inputs per piece of parallel work; below it a second thread costs more than it saves.
constexpr int64_t kGrain = 16384;

const QuantizeKernels& kernels() {
  static const bool avx2 = __builtin_cpu_supports("avx2");
  return avx2 ? kQuantizeAvx2 : kQuantizeBaseline;
}

QuantizeCode code_of(Format format) {
  switch (format) {
    case Format::kInt8: return QuantizeCode::kInt8;
    case Format::kInt4: return QuantizeCode::kInt4;
    case Format::kMxfp4:
    case Format::kNvfp4: return QuantizeCode::kE2m1;
    default: return QuantizeCode::kE4m3;
  }
}

/// Whole blocks of columns, an even number of columns unless it is the row's end.
struct Columns {
  int64_t begin, count;
};

class Quantizer {
 public:
  Quantizer(const ops::QuantizeArgs& args, Executor& executor)
      : args_(args),
        executor_(executor),
        how_{args.format, args.rounding, args.power_of_two_scales, args.scales.type,
             args.global_scale},
        rows_(args.values.extent(0)),
        cols_(args.input.extent(1)),
        block_cols_(args.scale_block.cols == 0 ? cols_ : args.scale_block.cols),
        type_(static_cast<size_t>(args.input.type)),
        code_(static_cast<size_t>(code_of(args.format))) {}

  void run() const {
    if (args_.scale_block.rows == 0) {
      for_each_chunk([&](const Columns& columns) { run_tensor(columns); });
      return;
    }
    const int64_t height = args_.scale_block.rows;
    parallel_for(
        executor_, ceil_div(rows_, height), grain() / height, [&](int64_t first, int64_t last) {
          for (int64_t band = first; band < last; ++band) {
            const int64_t end = std::min((band + 1) * height, rows_);
            for_each_chunk(
                [&](const Columns& columns) { run_band(band, band * height, end, columns); });
          }
        });
  }

 private:
  int64_t grain() const { return std::max<int64_t>(1, kGrain / cols_); }

  template <class Body>
  void for_each_chunk(Body&& body) const {
    // A pair of blocks at least, so that no chunk starts in the middle of a byte.
    const int64_t chunk = block_cols_ * std::max<int64_t>(2, kMaxBlocks / block_cols_ / 2 * 2);
    for (int64_t begin = 0; begin < cols_; begin += chunk) {
      body(Columns{begin, std::min(chunk, cols_ - begin)});
    }
  }

  /// Null when row_index points nowhere: a row of zeros.
  const void* source(int64_t row, const Columns& columns) const {
    if (!args_.row_index.empty()) row = args_.row_index.as<const int32_t>()[row];
    if (row < 0 || row >= args_.input.extent(0)) return nullptr;
    return args_.input.as<const char>() +
           (row * args_.input.stride(0) + columns.begin) * element_bytes(args_.input.type);
  }

  QuantizeSegment segment(const void* input, const Columns& columns) const {
    const auto* channel_scale = args_.channel_scale.as<const float>();
    return {input, channel_scale == nullptr ? nullptr : channel_scale + columns.begin,
            columns.count, block_cols_};
  }

  void raise_maxima(int64_t begin, int64_t end, const Columns& columns, uint32_t* maxima) const {
    for (int64_t row = begin; row < end; ++row) {
      if (const void* input = source(row, columns)) {
        kernels().amax[type_](segment(input, columns), maxima);
      }
    }
  }

  /// Stores the scales of one band and turns maxima into inverses.
  void store_scales(int64_t band, const Columns& columns, const uint32_t* maxima,
                    float* inverses) const {
    const TensorView& scales = args_.scales;
    const int64_t first = columns.begin / block_cols_;
    for (int64_t block = 0; block < ceil_div(columns.count, block_cols_); ++block) {
      const BlockScale scale = block_scale(how_, maxima[block]);
      inverses[block] = scale.inverse;
      store_f32(scales.data, scales.type,
                band * scales.stride(0) + (first + block) * scales.stride(1), scale.stored);
    }
  }

  void encode_rows(int64_t begin, int64_t end, const Columns& columns,
                   const float* inverses) const {
    const bool nibbles = element_bits(how_.format) == 4;
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* codes = args_.values.as<uint8_t>() + row * args_.values.stride(0) +
                       (nibbles ? columns.begin / 2 : columns.begin);
      if (const void* input = source(row, columns)) {
        kernels().encode[type_][code_](segment(input, columns), inverses, codes);
      } else {
        const int zero = zero_code(how_.format) * (nibbles ? 0x11 : 1);
        std::memset(
            codes, zero,
            static_cast<size_t>(nibbles ? ceil_div(columns.count, int64_t{2}) : columns.count));
      }
    }
  }

  void run_band(int64_t band, int64_t begin, int64_t end, const Columns& columns) const {
    std::array<uint32_t, kMaxBlocks> maxima;
    std::array<float, kMaxBlocks> inverses;
    std::fill_n(maxima.begin(), ceil_div(columns.count, block_cols_), 0u);
    raise_maxima(begin, end, columns, maxima.data());
    store_scales(band, columns, maxima.data(), inverses.data());
    encode_rows(begin, end, columns, inverses.data());
  }

  /// One band that holds all rows: the maxima first, over all threads.
  void run_tensor(const Columns& columns) const {
    const int64_t num_blocks = ceil_div(columns.count, block_cols_);
    std::array<std::atomic<uint32_t>, kMaxBlocks> shared{};
    parallel_for(executor_, rows_, grain(), [&](int64_t begin, int64_t end) {
      std::array<uint32_t, kMaxBlocks> maxima;
      std::fill_n(maxima.begin(), num_blocks, 0u);
      raise_maxima(begin, end, columns, maxima.data());
      for (size_t block = 0; block < static_cast<size_t>(num_blocks); ++block) {
        uint32_t seen = shared[block].load(std::memory_order_relaxed);
        while (seen < maxima[block] && !shared[block].compare_exchange_weak(seen, maxima[block])) {
        }
      }
    });
    std::array<uint32_t, kMaxBlocks> maxima;
    for (size_t block = 0; block < static_cast<size_t>(num_blocks); ++block) {
      maxima[block] = shared[block].load();
    }
    std::array<float, kMaxBlocks> inverses;
    store_scales(0, columns, maxima.data(), inverses.data());
    parallel_for(executor_, rows_, grain(), [&](int64_t begin, int64_t end) {
      encode_rows(begin, end, columns, inverses.data());
    });
  }

  const ops::QuantizeArgs& args_;
  Executor& executor_;
  BlockQuantization how_;
  int64_t rows_, cols_, block_cols_;
  size_t type_, code_;
};

}  // namespace

void quantize(const ops::QuantizeArgs& args, Executor& executor) {
  Quantizer(args, executor).run();
}

}  // namespace switchyard::cpu
