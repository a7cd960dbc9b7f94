#pragma once
// An Error with a code and a text in its message.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "switchyard/error.h"

namespace switchyard::testing {

/// Runs `body`, which must throw Error{code} whose message has `text` in it.
template <class Body>
void expect_error(ErrorCode code, const std::string& text, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected one with: " << text;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_THAT(std::string(e.what()), ::testing::HasSubstr(text));
  }
}

}  // namespace switchyard::testing
