// The safetensors reader and writer: round trips, every way a header can lie, shards.

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "checkpoint/expect_error.h"
#include "checkpoint/temp_dir.h"
#include "switchyard/checkpoint.h"
#include "switchyard/error.h"

namespace switchyard {
namespace {

using ::switchyard::testing::expect_error;
using ::switchyard::testing::raw_safetensors;
using ::switchyard::testing::TempDir;
using ::switchyard::testing::write_text;

TEST(Safetensors, RoundTripKeepsEveryTypeShapeAndByte) {
  const TempDir dir;
  const std::vector<DataType> types{
      DataType::kF32,    DataType::kF16, DataType::kBf16, DataType::kF8E4m3, DataType::kF8E5m2,
      DataType::kF8E8m0, DataType::kI8,  DataType::kU8,   DataType::kI32,    DataType::kI64,
      DataType::kF64,    DataType::kI16, DataType::kBool, DataType::kU32};
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<NamedTensor> tensors;
  for (const DataType type : types) {
    auto& data = bytes.emplace_back(static_cast<size_t>(3 * 5 * element_bytes(type)));
    std::iota(data.begin(), data.end(), static_cast<uint8_t>(bytes.size() * 17));
    tensors.push_back({.name = fmt::format("t{}", static_cast<int>(type)),
                       .view = TensorView::contiguous(data.data(), type, {3, 1, 5})});
  }
  double scalar = 2.5;
  tensors.push_back({"scalar", TensorView::contiguous(&scalar, DataType::kF64, {})});
  tensors.push_back(
      {"none", TensorView::contiguous(static_cast<void*>(nullptr), DataType::kF32, {0, 4})});
  save_safetensors(dir.file("x.safetensors"), tensors);

  const Safetensors file = Safetensors::open(dir.file("x.safetensors"));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const NamedTensor& expected : tensors) {
    const CheckpointTensor& tensor = file.at(expected.name);
    EXPECT_EQ(tensor.view.type, expected.view.type);
    EXPECT_EQ(tensor.view.rank, expected.view.rank);
    EXPECT_EQ(tensor.view.shape, expected.view.shape);
    EXPECT_TRUE(tensor.view.is_contiguous());
    EXPECT_EQ(tensor.bytes, expected.view.num_elements() * element_bytes(expected.view.type));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view.data) %
                  static_cast<uintptr_t>(element_bytes(tensor.view.type)),
              0u);
    if (tensor.bytes > 0) {
      EXPECT_EQ(
          std::memcmp(tensor.view.data, expected.view.data, static_cast<size_t>(tensor.bytes)), 0);
    }
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1)
      << "a temporary file was left";
}

TEST(Safetensors, ReadsUnsignedF4AndManyDimensions) {
  const TempDir dir;
  write_text(dir.file("x.safetensors"), raw_safetensors(R"({"__metadata__":{"format":"pt"},
      "f4":{"dtype":"F4","shape":[3,6],"data_offsets":[0,9]},
      "u16":{"dtype":"U16","shape":[1],"data_offsets":[9,11]},
      "u64":{"dtype":"U64","shape":[1],"data_offsets":[11,19]},
      "filter":{"dtype":"U8","shape":[2,1,3,1,2],"data_offsets":[19,31]}}   )",
                                                        31));
  const Safetensors file = Safetensors::open(dir.file("x.safetensors"));
  EXPECT_EQ(file.at("f4").dtype, "F4");
  EXPECT_EQ(file.at("f4").view.type, DataType::kU8);
  EXPECT_EQ(file.at("f4").view.extent(1), 3);
  EXPECT_EQ(file.at("u16").dtype, "U16");
  EXPECT_EQ(file.at("u64").view.type, DataType::kI64);
  EXPECT_EQ(file.at("filter").view.rank, 4);
  EXPECT_EQ(file.at("filter").view.num_elements(), 12);
  EXPECT_EQ(file.find("absent"), nullptr);
  expect_error(ErrorCode::kInvalidFile, "'absent'", [&] { file.at("absent"); });
}

struct Malformed {
  const char* name;
  std::string content;
  const char* culprit;
};

std::string one(const char* entry, size_t data_bytes = 4) {
  return raw_safetensors(fmt::format(R"({{"a":{}}})", entry), data_bytes);
}

std::string two(const char* a, const char* b, size_t data_bytes) {
  return raw_safetensors(fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                                     R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                                     a, b),
                         data_bytes);
}

std::vector<Malformed> malformed_files() {
  const std::string valid = one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})");
  return {
      {"empty file", "", "file size is 0"},
      {"short length", "\x01\x02", "file size is 2"},
      {"length beyond the file", std::string("\x10\0\0\0\0\0\0\0{}", 10), "header length is 16"},
      {"huge length", std::string("\0\0\0\0\0\0\0\x80{}", 10),
       "header length is 9223372036854775808"},
      {"length over the limit", std::string("\x01\xe1\xf5\x05\0\0\0\0", 8),
       "header length is 100000001"},
      {"truncated data", valid.substr(0, valid.size() - 1), "'a' ends at byte 4"},
      {"truncated header", valid.substr(0, 20), "header length"},
      {"no JSON", raw_safetensors("{\"a\":", 0), "not valid JSON"},
      {"header is an array", raw_safetensors("[]", 0), "header is no JSON object"},
      {"empty header", raw_safetensors("", 0), "header is no JSON object"},
      {"leading space", raw_safetensors(" {}", 0), "header is no JSON object"},
      {"text after the object", raw_safetensors("{}{}", 0), "not valid JSON"},
      {"NUL padding", raw_safetensors(std::string("{}\0", 3), 0), "not valid JSON"},
      {"invalid UTF-8", raw_safetensors("{\"\xff\":1}", 0), "not valid JSON"},
      {"deep nesting", raw_safetensors("{\"a\":" + std::string(100000, '['), 0), "deeper than 64"},
      {"duplicate tensor",
       raw_safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                       R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                       4),
       "key 'a' occurs twice"},
      {"duplicate key", one(R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})"),
       "key 'dtype' occurs twice"},
      {"entry is a number", one("3"), "tensor 'a' is no JSON object"},
      {"no dtype", one(R"({"shape":[1],"data_offsets":[0,4]})"), "tensor 'a' has no key 'dtype'"},
      {"no shape", one(R"({"dtype":"F32","data_offsets":[0,4]})"), "tensor 'a' has no key 'shape'"},
      {"no offsets", one(R"({"dtype":"F32","shape":[1]})"), "has no key 'data_offsets'"},
      {"unknown key", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"zip":1})"),
       "tensor 'a' has the unknown key 'zip'"},
      {"unknown dtype", one(R"({"dtype":"F6_E3M2","shape":[1],"data_offsets":[0,4]})"),
       "tensor 'a' dtype is 'F6_E3M2'"},
      {"dtype is a number", one(R"({"dtype":5,"shape":[1],"data_offsets":[0,4]})"),
       "tensor 'a' dtype"},
      {"shape is a number", one(R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})"),
       "tensor 'a' shape"},
      {"negative extent", one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"),
       "extent is -1"},
      {"fractional extent", one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"),
       "extent is 1.0"},
      {"extent of 2^63",
       one(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,4]})"),
       "extent is 9223372036854775808"},
      {"extent beyond 64 bits",
       one(R"({"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]})"), "extent is"},
      {"product overflows",
       one(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,4]})"), "overflows"},
      {"product overflows beside a zero",
       one(R"({"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})", 0),
       "overflows"},
      {"bytes overflow",
       one(R"({"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,4]})"), "overflows"},
      {"odd F4", one(R"({"dtype":"F4","shape":[2,3],"data_offsets":[0,3]})", 3),
       "even last extent"},
      {"F4 scalar", one(R"({"dtype":"F4","shape":[],"data_offsets":[0,0]})", 0),
       "even last extent"},
      {"one offset", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})"),
       "tensor 'a' data_offsets"},
      {"offsets are text", one(R"({"dtype":"F32","shape":[1],"data_offsets":["0","4"]})"),
       "data_offsets begin"},
      {"negative offset", one(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})"),
       "begin is -4"},
      {"reversed offsets", one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), "[4, 0]"},
      {"size disagrees", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), "needs 8"},
      {"past the end", one(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})"),
       "'a' ends at byte 16"},
      {"overlap", two("[0,4]", "[2,6]", 6), "'b' begins at byte 2; it overlaps"},
      {"the same bytes twice", two("[0,4]", "[0,4]", 4), "'b' begins at byte 0; it overlaps"},
      {"gap", two("[0,4]", "[6,10]", 10), "'b' begins at byte 6; there is a gap"},
      {"gap at the start", two("[1,5]", "[5,9]", 9), "'a' begins at byte 1; there is a gap"},
      {"bytes left over", two("[0,4]", "[4,8]", 9), "the file holds 9 data bytes"},
      {"metadata is a list", raw_safetensors(R"({"__metadata__":[]})", 0), "__metadata__"},
      {"metadata holds a number", raw_safetensors(R"({"__metadata__":{"k":1}})", 0),
       "'k' is no string"},
      {"control characters", raw_safetensors("{\"\\u001b[31m\":0}", 0), "'\\x1b[31m'"},
  };
}

TEST(Safetensors, MalformedFilesAreNamedErrors) {
  const TempDir dir;
  for (const Malformed& row : malformed_files()) {
    SCOPED_TRACE(row.name);
    write_text(dir.file("x.safetensors"), row.content);
    expect_error(ErrorCode::kInvalidFile, row.culprit,
                 [&] { Safetensors::open(dir.file("x.safetensors")); });
  }
}

TEST(Safetensors, EveryPrefixOfAValidFileIsAnError) {
  const TempDir dir;
  const std::string valid = two("[0,4]", "[4,8]", 8);
  for (size_t size = 0; size < valid.size(); ++size) {
    write_text(dir.file("x.safetensors"), valid.substr(0, size));
    EXPECT_THROW(Safetensors::open(dir.file("x.safetensors")), Error) << size;
  }
}

/// Two shards with one tensor each, and an index with the given weight_map.
void write_shards(const TempDir& dir, const std::string& weight_map) {
  const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  const std::string b = R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  write_text(dir.file("1.safetensors"), raw_safetensors(a, 4));
  write_text(dir.file("2.safetensors"), raw_safetensors(b, 4));
  write_text(dir.file("a2.safetensors"), raw_safetensors(a, 4));
  write_text(dir.file("model.safetensors.index.json"),
             R"({"metadata":{},"weight_map":)" + weight_map + "}");
}

TEST(Safetensors, ShardsAreMergedAndSorted) {
  const TempDir dir;
  write_shards(dir, R"({"b":"2.safetensors","a":"1.safetensors"})");
  const Safetensors files = Safetensors::open(dir.path().string());
  ASSERT_EQ(files.tensors().size(), 2u);
  EXPECT_EQ(files.tensors()[0].name, "a");
  EXPECT_EQ(files.at("b").file, dir.file("2.safetensors"));
}

TEST(Safetensors, ShardsMayBeSymbolicLinksAsInTheHuggingFaceCache) {
  const TempDir dir;
  write_shards(dir, R"({"b":"link.safetensors"})");
  std::filesystem::create_symlink("2.safetensors", dir.file("link.safetensors"));
  EXPECT_EQ(Safetensors::open(dir.path().string()).at("b").bytes, 4);
}

TEST(Safetensors, LyingIndexesAreNamedErrors) {
  const std::vector<std::pair<const char*, const char*>> rows{
      {R"({"a":"3.safetensors"})", "'3.safetensors', which does not exist"},
      {R"({"a":"1.safetensors","c":"2.safetensors"})", "'c' is not in its shard"},
      {R"({"a":"2.safetensors","b":"1.safetensors"})", "'a' is not in its shard"},
      {R"({"a":"1.safetensors","x":"a2.safetensors"})", "'a' is also in"},
      {R"({"a":"../1.safetensors"})", "'../1.safetensors'; must be a plain file name"},
      {R"({"a":"/etc/passwd"})", "'/etc/passwd'; must be a plain file name"},
      {R"({"a":".."})", "must be a plain file name"},
      {R"({"a":""})", "must be a plain file name"},
      {R"({"a":"1.safetensors\u0000x"})", "must be a plain file name"},
      {R"({"a":1})", "'a' is no string"},
      {R"({"a":"1.safetensors","a":"1.safetensors"})", "'a' occurs twice"},
      {R"([])", "weight_map"},
      {R"({})", "weight_map is empty"},
  };
  for (const auto& [weight_map, culprit] : rows) {
    SCOPED_TRACE(weight_map);
    const TempDir dir;
    write_shards(dir, weight_map);
    expect_error(ErrorCode::kInvalidFile, culprit, [&] { Safetensors::open(dir.path().string()); });
  }
}

TEST(Safetensors, WhatIsNotACheckpointIsSaid) {
  const TempDir dir;
  expect_error(ErrorCode::kInvalidFile, "holds neither",
               [&] { Safetensors::open(dir.path().string()); });
  expect_error(ErrorCode::kInvalidFile, "cannot open", [&] { Safetensors::open(dir.file("no")); });
  write_text(dir.file("model.gguf"), "GGUF");
  expect_error(ErrorCode::kUnsupported, "model.gguf",
               [&] { Safetensors::open(dir.path().string()); });
  expect_error(ErrorCode::kUnsupported, "GGUF", [&] { Safetensors::open(dir.file("model.gguf")); });
  ASSERT_EQ(::mkfifo(dir.file("model.safetensors").c_str(), 0600), 0);
  expect_error(ErrorCode::kInvalidFile, "not a regular file",
               [&] { Safetensors::open(dir.path().string()); });
}

TEST(SaveSafetensors, RefusesWhatItCannotWriteAndLeavesNothing) {
  const TempDir dir;
  std::vector<float> data(6);
  const TensorView view = TensorView::contiguous(data.data(), DataType::kF32, {2, 3});
  TensorView transposed = view;
  std::swap(transposed.shape[0], transposed.shape[1]);
  std::swap(transposed.strides[0], transposed.strides[1]);
  const auto save = [&](std::vector<NamedTensor> tensors) {
    save_safetensors(dir.file("x.safetensors"), tensors);
  };
  expect_error(ErrorCode::kInvalidArgument, "'a' is given twice", [&] {
    save({{"a", view}, {"a", view}});
  });
  expect_error(ErrorCode::kInvalidArgument, "reserved", [&] { save({{"__metadata__", view}}); });
  expect_error(ErrorCode::kInvalidArgument, "not contiguous", [&] { save({{"a", transposed}}); });
  expect_error(ErrorCode::kInvalidArgument, "UTF-8", [&] { save({{"\xff", view}}); });
  expect_error(ErrorCode::kInvalidArgument, "has no data", [&] {
    save({{"a", TensorView::contiguous(static_cast<void*>(nullptr), DataType::kF32, {1})}});
  });
  expect_error(ErrorCode::kInvalidFile, "No such file", [&] {
    save_safetensors(dir.file("no/x.safetensors"), {{"a", view}});
  });
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(SaveSafetensors, FailedRenameRemovesTheTemporaryFileAndKeepsTheTarget) {
  const TempDir dir;
  std::filesystem::create_directories(dir.path() / "x.safetensors" / "full");
  float value = 1;
  expect_error(ErrorCode::kInvalidFile, "rename", [&] {
    save_safetensors(dir.file("x.safetensors"),
                     {{"a", TensorView::contiguous(&value, DataType::kF32, {1})}});
  });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
  EXPECT_TRUE(std::filesystem::is_directory(dir.path() / "x.safetensors" / "full"));
}

TEST(SaveSafetensors, ReplacesAnExistingFile) {
  const TempDir dir;
  write_text(dir.file("x.safetensors"), "old");
  float value = 3;
  save_safetensors(dir.file("x.safetensors"),
                   {{"a", TensorView::contiguous(&value, DataType::kF32, {1})}});
  EXPECT_EQ(*Safetensors::open(dir.file("x.safetensors")).at("a").view.as<float>(), 3.0f);
}

}  // namespace
}  // namespace switchyard
