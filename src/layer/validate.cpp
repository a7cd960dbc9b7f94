#include "layer/validate.h"

#include "layer/check.h"

namespace switchyard {

void validate_compare(const TensorView& output, const TensorView& reference) {
  const Types comparable = {DataType::kF32, DataType::kBf16, DataType::kF16, DataType::kF64};
  check_tensor("reference", reference, comparable, {kAnyExtent, kAnyExtent});
  check_tensor("output", output, comparable, {reference.extent(0), reference.extent(1)});
}

}  // namespace switchyard
