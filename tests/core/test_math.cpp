// Quotients by multiplication.

#include <gtest/gtest.h>

#include "core/math.h"

namespace switchyard {
namespace {

TEST(Divider, QuotientsAreExact) {
  for (uint32_t by = 1; by <= 300; ++by) {
    const Divider divider(by);
    for (uint32_t number = 0; number < 3000; ++number) {
      ASSERT_EQ(divider.quotient(number), number / by) << number << " / " << by;
    }
  }
  constexpr uint32_t kMost = (uint32_t{1} << 31) - 1;
  for (const uint32_t by : {1u, 2u, 3u, 7u, 641u, 65535u, 65537u, kMost / 2, kMost - 1, kMost}) {
    const Divider divider(by);
    for (uint32_t step = 0; step < 2000; ++step) {
      // Around multiples, where a quotient that is off by one shows.
      const uint32_t multiple = kMost / by / 2000 * step * by;
      for (const uint32_t number : {multiple, multiple + by - 1, kMost - step}) {
        if (number > kMost) continue;
        ASSERT_EQ(divider.quotient(number), number / by) << number << " / " << by;
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
