// Quantisation on the GPU gives the reference's bits: every format, block, rounding and input type,
// aligned or not, gathered or not.

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <string>

#include "core/number_formats.h"
#include "core/scale_layout.h"
#include "gpu/device_tensor.h"
#include "reference/steps.h"
#include "support/quantize_cases.h"
#include "support/random.h"

namespace switchyard {
namespace {

using Case = test::QuantizeCase;
using test::describe;
using test::quantize_cases;

using test::Buffer;
using test::DeviceTensor;
using test::Random;

/// Quantises on both sides and compares every byte.
void compare(const Case& c, const Buffer& input, int64_t rows, const Buffer* row_index,
             const Buffer* channel_scale) {
  const int64_t cols = input.view().extent(1);
  SCOPED_TRACE(describe(c) + ", " + std::to_string(rows) + " x " + std::to_string(cols) + " " +
               to_string(input.view().type));
  Buffer values(test::code_type(c.format), {rows, test::code_cols(c.format, cols)});
  Buffer scales(c.scale_type, {scale_rows(c.block, rows), scale_cols(c.block, cols)});
  const DeviceTensor device_input(input);
  const DeviceTensor device_values(values);
  const DeviceTensor device_scales(scales);
  ops::QuantizeArgs args{.input = input,
                         .format = c.format,
                         .scale_block = c.block,
                         .rounding = c.rounding,
                         .power_of_two_scales = c.power_of_two,
                         .global_scale = c.global_scale,
                         .values = values,
                         .scales = scales};
  if (row_index != nullptr) args.row_index = *row_index;
  if (channel_scale != nullptr) args.channel_scale = *channel_scale;
  ops::QuantizeArgs on_device = args;
  const DeviceTensor device_index(args.row_index);
  const DeviceTensor device_channel(args.channel_scale);
  on_device.input = device_input;
  on_device.row_index = device_index;
  on_device.channel_scale = device_channel;
  on_device.values = device_values;
  on_device.scales = device_scales;
  reference::quantize(args);
  test::gpu().quantize(on_device, test::on_gpu());
  const Buffer got_scales = device_scales.fetch();
  const Buffer got_values = device_values.fetch();
  for (int64_t i = 0; i < scales.bytes(); ++i) {
    ASSERT_EQ(got_scales.as<uint8_t>()[i], scales.as<uint8_t>()[i]) << "scale byte " << i;
  }
  const int64_t row_bytes = values.view().extent(1);
  for (int64_t i = 0; i < values.bytes(); ++i) {
    ASSERT_EQ(static_cast<int>(got_values.as<uint8_t>()[i]),
              static_cast<int>(values.as<uint8_t>()[i]))
        << "value byte " << i % row_bytes << " of row " << i / row_bytes;
  }
}

TEST(GpuQuantize, EveryFormatAndShape) {
  Random random(1);
  for (const Case& c : quantize_cases()) {
    for (const auto& [rows, cols] : {std::pair{1, 128},
                                     {3, 7168},
                                     {5, 2880},
                                     {17, 256},
                                     {2, 8},
                                     {4, 193},
                                     {130, 90},
                                     {0, 64}}) {
      for (const DataType type : {DataType::kF32, DataType::kBf16, DataType::kF16}) {
        compare(c, Buffer::normal(random, type, {rows, cols}, 3.0), rows, nullptr, nullptr);
      }
    }
  }
}

TEST(GpuQuantize, GatheredRowsAndChannelScales) {
  Random random(2);
  for (const Case& c : quantize_cases()) {
    for (const int64_t cols : {256, 70}) {
      const Buffer input = Buffer::normal(random, DataType::kBf16, {9, cols});
      const Buffer channel = Buffer::normal(random, DataType::kF32, {cols});
      const Buffer index =
          Buffer::of(DataType::kI32, {12}, {8, 0, 3, -1, 9, 3, 3, 1, 2, 100, 7, -5});
      compare(c, input, 12, &index, nullptr);
      compare(c, input, 9, nullptr, &channel);
      compare(c, input, 12, &index, &channel);
    }
  }
}

TEST(GpuQuantize, AnyBits) {
  // Every exponent and mantissa, subnormals, zeros of both signs; NaN and infinity in some rows.
  Random random(4);
  for (const Case& c : quantize_cases()) {
    for (const bool special : {false, true}) {
      Buffer input(DataType::kF32, {64, 256});
      for (int64_t i = 0; i < input.size(); ++i) {
        const auto bits = static_cast<uint32_t>(random.bits());
        const bool odd_row = i / 256 % 2 == 1;
        // Rows of moderate range meet every code; the others every float.
        const float value =
            odd_row ? static_cast<float>(random.uniform(-500, 500)) : std::bit_cast<float>(bits);
        const bool finite = std::isfinite(value);
        input.as<float>()[i] = finite || special ? value : 0.0f;
      }
      compare(c, input, 64, nullptr, nullptr);
    }
  }
}

TEST(GpuQuantize, ConversionsMatchTheDefinitionOnEveryHalf) {
  // A row whose largest value makes the scale one: the codes are conversions of the inputs alone.
  for (const auto& [format, largest] : {std::pair{Format::kFp8E4m3, 448.0f},
                                        {Format::kMxfp8, 448.0f},
                                        {Format::kMxfp4, 6.0f},
                                        {Format::kInt8, 127.0f}}) {
    std::vector<double> values;
    for (uint32_t code = 0; code < 65536; ++code) {
      const float value = f16_to_f32(static_cast<uint16_t>(code));
      if (std::fabs(value) <= largest) values.push_back(static_cast<double>(value));
    }
    std::vector<double> rows;
    for (size_t i = 0; i < values.size(); ++i) {
      if (rows.size() % 32 == 0) rows.push_back(static_cast<double>(largest));
      rows.push_back(values[i]);
    }
    while (rows.size() % 32 != 0) rows.push_back(0);
    const auto num_rows = static_cast<int64_t>(rows.size() / 32);
    const bool mx = format == Format::kMxfp4 || format == Format::kMxfp8;
    compare(
        {.format = format, .block = {1, 32}, .scale_type = mx ? DataType::kF8E8m0 : DataType::kF32},
        Buffer::of(DataType::kF32, {num_rows, 32}, rows), num_rows, nullptr, nullptr);
  }
}

TEST(GpuQuantize, EveryBf16NumberToMxfp4) {
  // Under leaders from the number's own binade to 16 above it, so that every code and tie is met,
  // in blocks down to the subnormal numbers.
  for (const ScaleRounding rounding :
       {ScaleRounding::kDown, ScaleRounding::kUp, ScaleRounding::kEven, ScaleRounding::kCeil}) {
    for (const double leader : {1.0, 2.0, 8.0, 16.0}) {
      Buffer rows(DataType::kBf16, {2048, 32});
      auto* words = rows.as<uint16_t>();
      for (uint32_t code = 0; code < 65536; ++code) words[code] = static_cast<uint16_t>(code);
      for (int64_t r = 0; r < 2048; ++r) {
        const double largest = std::fabs(rows.at(r * 32 + 31));
        if (std::isfinite(largest * leader) && largest * leader < 1e38) {
          rows.set(r * 32, largest * leader);
        }
      }
      compare({.format = Format::kMxfp4,
               .block = {1, 32},
               .scale_type = DataType::kF8E8m0,
               .rounding = rounding},
              rows, 2048, nullptr, nullptr);
    }
  }
}

}  // namespace
}  // namespace switchyard
