#pragma once
// Aligned text tables: columns as wide as their widest cell, two spaces between them.

#include <string>
#include <vector>

namespace switchyard::cli {

enum class Align { kLeft, kRight };

struct Column {
  std::string title;
  Align align = Align::kRight;
};

class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  /// Missing trailing cells are blank.
  void add_row(std::vector<std::string> cells);
  size_t num_rows() const { return rows_.size(); }
  /// Title line, rule, rows; every line ends in a newline and no line in blanks.
  std::string str() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace switchyard::cli
