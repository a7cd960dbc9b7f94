#pragma once
// Comparison with a failure message that says which element, row, token and expert is worst.

#include <gtest/gtest.h>

#include <string>

#include "switchyard/verify.h"

namespace switchyard::test {

/// output and reference [T, C] or [T, K, C] within `bound`. topk_ids [T, K], when given, names the
/// experts of the worst row.
testing::AssertionResult within(const TensorView& output, const TensorView& reference,
                                const ErrorBound& bound, const TensorView& topk_ids = {});

/// What a step may differ by when only its f32 sums of `terms` terms and the rounding to `type`
/// separate it from exact arithmetic.
ErrorBound rounding_bound(int64_t terms, DataType type);

}  // namespace switchyard::test
