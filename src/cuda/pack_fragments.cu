// One thread block packs 64 rows: it finds each row's largest scale, then walks the columns.

#include "core/block_quantize.h"
#include "cuda/launch.cuh"
#include "cuda/pack_fragments.h"

namespace switchyard::cuda {
namespace {

constexpr int kGroupCols = 32;  // of an MX block
constexpr int kWordsPerThread = 4;

struct Tile {
  uint8_t codes[kFragmentRows][kFragmentCols];  // rows of so many bytes as the format has
  uint8_t largest[kFragmentRows];               // E8M0 byte; kNvfp4: exponent
  bool wide[kFragmentRows];
};

/// kNvfp4: two threads find the largest exponent of a row.
__device__ void scan_nvfp4_row(const FragmentPackJob& job, Tile& tile, int row, int half,
                               int64_t global) {
  int largest = 0;
  if (global < job.num_rows) {
    for (int g = half; g < job.num_groups; g += 2) {
      const uint8_t scale = job.scales[global * job.num_groups + g];
      largest = max(largest, nvfp4_exponent(nvfp4_scale_byte(scale)));
    }
  }
  largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
  if (half == 0) tile.largest[row] = static_cast<uint8_t>(largest);
}

/// Four bits a code or eight.
constexpr uint32_t magnitude_bits(Format format) {
  return format == Format::kMxfp8 ? 0x7f7f7f7fu : 0x77777777u;
}
__device__ int bytes_of(Format format, int cols) { return cols * element_bits(format) / 8; }
__device__ bool is_mx(Format format) {
  return format == Format::kMxfp4 || format == Format::kMxfp8;
}

/// Of codes in whole 16 bytes.
__device__ bool has_nonzero(Format format, const uint8_t* codes, int64_t bytes) {
  uint32_t all = 0;
  for (int64_t i = 0; i < bytes; i += 4) all |= *reinterpret_cast<const uint32_t*>(codes + i);
  return (all & magnitude_bits(format)) != 0;
}
__device__ bool has_nan(const uint8_t* e4m3, int64_t bytes) {
  uint32_t found = 0;
  for (int64_t i = 0; i < bytes; i += 4) {
    const uint32_t magnitudes = *reinterpret_cast<const uint32_t*>(e4m3 + i) & 0x7f7f7f7fu;
    found |= __vcmpeq4(magnitudes, 0x7f7f7f7fu);
  }
  return found != 0;
}

/// MX: two threads find the largest scale of a row and how far the others lie below it.
__device__ void scan_row(const FragmentPackJob& job, Tile& tile, int row, int half,
                         int64_t global) {
  int largest = -1, smallest = 255;
  const Format format = job.layout.format;
  if (global < job.num_rows) {
    for (int g = half; g < job.num_groups; g += 2) {
      const int byte = job.scales[global * job.num_groups + g];
      const int64_t group_bytes = bytes_of(format, kGroupCols), begin = g * group_bytes;
      const uint8_t* codes = job.codes + global * job.row_bytes + begin;
      const int64_t bytes = min(group_bytes, job.row_bytes - begin);
      if (byte == 255 || (format == Format::kMxfp8 && has_nan(codes, bytes))) {
        atomicAdd(&job.spread->not_numbers, 1u);
      }
      if (!has_nonzero(format, codes, bytes)) continue;
      largest = max(largest, byte);
      smallest = min(smallest, byte);
    }
  }
  largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
  smallest = min(smallest, __shfl_xor_sync(~0u, smallest, 1));
  if (half != 0) return;
  if (largest < 0) largest = smallest = 127;  // a row of zeros
  const int spread = largest - smallest;
  tile.largest[row] = static_cast<uint8_t>(largest);
  tile.wide[row] = spread > max_steps_down(job.layout.order);
  if (global >= job.num_rows) return;
  job.row_scales[global] =
      tile.wide[row]
          ? -1.0f
          : power_of_two(mx_row_exponent(job.layout.order, format, static_cast<uint8_t>(largest)));
  atomicAdd(&job.spread->rows[min(spread, ScaleSpread::kBins - 1)], 1u);
  if (tile.wide[row]) atomicAdd(&job.spread->wide, 1u);
}

__device__ int group_of(const FragmentPackJob& job, int64_t col) {
  return job.group_size == 0 ? 0 : static_cast<int>(col / job.group_size);
}

/// Code of (row, col) of the block at column `first_col`, as it is stored in fragments.
__device__ uint32_t code_at(const FragmentPackJob& job, const Tile& tile, int row, int col,
                            int64_t global_row, int64_t first_col) {
  const Format format = job.layout.format;
  if (global_row >= job.num_rows || first_col + col >= job.num_cols) return zero_code(format);
  if (format == Format::kMxfp8) return tile.codes[row][col];
  uint32_t code = tile.codes[row][col / 2] >> (col % 2 * 4) & 15u;
  if (format == Format::kNvfp4) {
    const uint8_t scale = job.scales[global_row * job.num_groups + group_of(job, first_col + col)];
    code = (scale & 0x7fu) == 0 ? 0u : code ^ (scale >> 4 & 8u);
  }
  return code;
}

/// 16 bytes of this thread: `part` 1 are the second ones of kMxfp8.
__device__ void pack_codes(const FragmentPackJob& job, const Tile& tile, int thread, int part,
                           int64_t first_row, int64_t first_col, uint8_t* block) {
  const FragmentOrder order = job.layout.order;
  const int place = part * kFragmentThreads + thread;
  uint32_t words[kWordsPerThread] = {};
  for (int row = thread / 4 * 2; row < thread / 4 * 2 + 2; ++row) {
    for (int run = 0; run < kFragmentCols; run += code_run(order)) {
      const int word = code_place(job.layout, row, run).word;
      if (word / kWordsPerThread != place) continue;
      for (int col = run; col < run + code_run(order); ++col) {
        const uint32_t code = placed_code(code_at(job, tile, row, col, first_row + row, first_col),
                                          code_place(job.layout, row, col));
#pragma unroll
        for (int w = 0; w < kWordsPerThread; ++w) {
          words[w] |= word % kWordsPerThread == w ? code : 0u;
        }
      }
    }
  }
  reinterpret_cast<uint4*>(block)[place] = make_uint4(words[0], words[1], words[2], words[3]);
}

/// Byte of an MX block, zeros as if they had the largest scale.
__device__ uint8_t mx_byte(const FragmentPackJob& job, const Tile& tile, int row, int col,
                           uint8_t e8m0) {
  if (tile.wide[row]) return e8m0;
  const Format format = job.layout.format;
  const bool zeros =
      !has_nonzero(format, &tile.codes[row][bytes_of(format, col)], bytes_of(format, kGroupCols));
  return mx_scale_byte(job.layout.order, zeros ? 0 : tile.largest[row] - e8m0);
}

__device__ void pack_scales(const FragmentPackJob& job, const Tile& tile, int thread,
                            int64_t first_row, int64_t first_col, uint8_t* block) {
  const FragmentLayout& layout = job.layout;
  const int count = kFragmentRows * layout.scales_per_row();
  for (int i = thread; i < count; i += kFragmentThreads) {
    const int row = i / layout.scales_per_row();
    const int col = i % layout.scales_per_row() * layout.scale_cols;
    uint8_t* to = block + scale_place(layout, row, col);
    const bool inside = first_row + row < job.num_rows && first_col + col < job.num_cols;
    const int64_t from =
        inside ? (first_row + row) * job.num_groups + group_of(job, first_col + col) : 0;
    if (layout.scale_bytes == 4) {
      const uint32_t factor = inside ? reinterpret_cast<const uint32_t*>(job.scales)[from]
                                     : int4_factor(0.0f, kInt4ZeroPoint);
      *reinterpret_cast<uint32_t*>(to) = factor;
      const bool exact =
          layout.order != FragmentOrder::kFp8 || int4_zero_point(factor) <= kMostInt4Fp8Zero;
      if (!exact) atomicAdd(&job.spread->wide, 1u);
    } else if (layout.format == Format::kInt4) {
      *reinterpret_cast<uint16_t*>(to) =
          inside ? reinterpret_cast<const uint16_t*>(job.scales)[from] : uint16_t{0};
    } else if (layout.format == Format::kNvfp4) {
      if (inside && (job.scales[from] & 0x7fu) == 0x7fu) atomicAdd(&job.spread->not_numbers, 1u);
      const uint8_t byte = inside ? nvfp4_scale_byte(job.scales[from]) : uint8_t{0};
      *to = layout.order == FragmentOrder::kFp8 && inside
                ? nvfp4_relative_byte(byte, tile.largest[row])
                : byte;
    } else {
      *to =
          inside ? mx_byte(job, tile, row, col, job.scales[from]) : mx_scale_byte(layout.order, 0);
    }
  }
}

__global__ void __launch_bounds__(kFragmentThreads)
    pack_fragments_kernel(const __grid_constant__ FragmentPackJob job) {
  __shared__ alignas(16) Tile tile;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / 2, half = thread % 2;
  const int64_t first_row = int64_t{blockIdx.x} * kFragmentRows;
  const Format format = job.layout.format;
  if (format == Format::kNvfp4) scan_nvfp4_row(job, tile, row, half, first_row + row);
  if (is_mx(format)) {
    scan_row(job, tile, row, half, first_row + row);
  } else if (half == 0 && first_row + row < job.num_rows) {
    const int64_t global = first_row + row;
    const float scale =
        job.global_scales != nullptr ? job.global_scales[global % job.halves] : 1.0f;
    job.row_scales[global] =
        scale * (format == Format::kNvfp4 ? nvfp4_row_scale(job.layout.order, tile.largest[row])
                                          : int4_row_scale(job.layout));
  }
  for (int64_t col = 0; col < job.layout.padded_cols(); col += kFragmentCols) {
    __syncthreads();
    const int64_t first_byte = col * element_bits(format) / 8;
    for (int at = half * 16; at < bytes_of(format, kFragmentCols); at += 32) {
      const int64_t byte = first_byte + at;
      const bool inside = first_row + row < job.num_rows && byte < job.row_bytes;
      const uint8_t* from = job.codes + (first_row + row) * job.row_bytes + byte;
      *reinterpret_cast<uint4*>(&tile.codes[row][at]) =
          inside ? *reinterpret_cast<const uint4*>(from) : uint4{};
    }
    __syncthreads();
    uint8_t* block = job.blocks + fragment_block(job.layout, first_row, col);
    for (int part = 0; part < element_bits(format) / 4; ++part) {
      pack_codes(job, tile, thread, part, first_row, col, block);
    }
    pack_scales(job, tile, thread, first_row, col, block);
  }
}

}  // namespace

void pack_fragments(const FragmentPackJob& job, cudaStream_t stream) {
  launch(pack_fragments_kernel,
         {.grid = dim3(static_cast<unsigned>(job.layout.row_blocks)), .block = kFragmentThreads},
         stream, job);
}

}  // namespace switchyard::cuda
