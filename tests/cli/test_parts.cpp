// The pieces behind the commands: token lists, tables, numbers as text, order statistics.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/temp_dir.h"
#include "cli/arguments.h"
#include "cli/report.h"
#include "cli/statistics.h"
#include "cli/table.h"
#include "cli/text.h"

namespace switchyard::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string error_of(const std::string& tokens) {
  try {
    parse_token_list(tokens);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(TokenList, ReadsNumbersAndDoublingRanges) {
  EXPECT_THAT(parse_token_list("7"), ElementsAre(7));
  EXPECT_THAT(parse_token_list("1,16,64"), ElementsAre(1, 16, 64));
  EXPECT_THAT(parse_token_list("1,2,4..64"), ElementsAre(1, 2, 4, 8, 16, 32, 64));
  EXPECT_THAT(parse_token_list("3..20,5"), ElementsAre(3, 6, 12, 5));
  EXPECT_THAT(parse_token_list("8..8"), ElementsAre(8));
  EXPECT_THAT(parse_token_list("16777215"), ElementsAre(16777215));
}

TEST(TokenList, RefusesEverythingElse) {
  for (const char* text :
       {"", ",", "1,", ",1", "1,,2", "x", "1x", "1..", "..4", "1..2..3", "1 2", "-1", "0", "1,0",
        "0..4", "8..4", "16777216", "99999999999999999999", "1.5"}) {
    EXPECT_THAT(error_of(text), HasSubstr(std::string("--tokens is '") + text + "'")) << text;
  }
  EXPECT_THAT(error_of("1,banana"), HasSubstr("'banana' is not a number"));
  EXPECT_THAT(error_of("8..4"), HasSubstr("runs downwards"));
  EXPECT_THAT(error_of("0"), HasSubstr("outside 1..16777215"));
}

TEST(BackendName, IsOneOfFour) {
  EXPECT_EQ(parse_backend("auto"), BackendKind::kAuto);
  EXPECT_EQ(parse_backend("cpu"), BackendKind::kCpu);
  EXPECT_EQ(parse_backend("cuda"), BackendKind::kCuda);
  EXPECT_EQ(parse_backend("reference"), BackendKind::kReference);
  EXPECT_THROW(parse_backend("CPU"), Error);
}

TEST(Table, AlignsColumnsAndIgnoresColours) {
  Table table({{"name", Align::kLeft}, {"us"}, {"note", Align::kLeft}});
  table.add_row({"a", "1.5", "\x1b[32mok\x1b[0m"});
  table.add_row({"longer", "100.25", "fine"});
  table.add_row({"b"});
  EXPECT_EQ(table.str(),
            "name        us  note\n"
            "------  ------  ----\n"
            "a          1.5  \x1b[32mok\x1b[0m\n"
            "longer  100.25  fine\n"
            "b\n");
}

TEST(Text, WritesSizesTimesAndRanges) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(1.58 * 1024 * 1024 * 1024), "1.58 GiB");
  EXPECT_EQ(time_text(0.034), "0.03 us");
  EXPECT_EQ(time_text(12.34), "12.3 us");
  EXPECT_EQ(time_text(4560), "4.56 ms");
  EXPECT_EQ(time_text(1.2e6), "1.20 s");
  EXPECT_EQ(ranges_text({}), "");
  EXPECT_EQ(ranges_text({5}), "5");
  EXPECT_EQ(ranges_text({0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
  EXPECT_EQ(list_text({"a", "b"}, 2), "a, b");
  EXPECT_EQ(list_text({"a", "b", "c", "d"}, 2), "a, b and 2 more");
}

TEST(Quantile, InterpolatesBetweenSamples) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
  EXPECT_EQ(quantile({5, 1, 3, 2, 4}, 0), 1);
  EXPECT_EQ(quantile({5, 1, 3, 2, 4}, 1), 5);
  EXPECT_DOUBLE_EQ(quantile({0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100}, 0.1), 10);
  EXPECT_DOUBLE_EQ(quantile({0, 1}, 0.9), 0.9);
}

TEST(Report, ReplacesTheFileOrLeavesItAlone) {
  const testing::TempDir directory;
  const std::string path = directory.file("report.json");
  Json report = new_report("bench");
  report["value"] = 3;
  save_report(path, report);
  EXPECT_EQ(Json::parse(std::ifstream(path)), report);
  EXPECT_EQ(report["schema_version"], kSchemaVersion);
  try {
    save_report(directory.file("absent/report.json"), report);
    ADD_FAILURE() << "written into a directory that does not exist";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("absent/report.json"));
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

}  // namespace
}  // namespace switchyard::cli
