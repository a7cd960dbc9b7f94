#pragma once
// Checks of stored matrices and of the index tensors that ops and forward share.

#include <fmt/format.h>

#include "layer/check.h"
#include "switchyard/weights.h"

namespace switchyard {

/// "experts[3].gate": formatted only when a check fails.
struct MatrixName {
  const char* owner = nullptr;
  const char* part = nullptr;
  MatrixName(const char* o, const char* p) : owner(o), part(p) {}
  MatrixName(const char* name) : part(name) {}  // NOLINT(google-explicit-constructor)
};

/// Enumerator in range, and the scale block that goes with it.
void check_format(const char* name, Format format, const ScaleBlock& block);
/// Values, scales and the optional tensors of one matrix [rows, cols]; no scale may be NaN or
/// infinite.
void check_matrix(const MatrixName& name, const WeightMatrix& matrix, int64_t rows, int64_t cols);
/// An optional float vector of a checkpoint: any stride, any alignment.
void check_stored_vector(const MatrixName& name, const TensorView& vector, int64_t size);
/// One activation meets both matrices, so its channels have one scale.
void check_same_smooth_scales(const MatrixName& name, const WeightMatrix& gate,
                              const WeightMatrix& up);
/// tid2eid [vocab, top_k] with every entry an expert.
void check_expert_table(const TensorView& table, int64_t top_k, int64_t num_experts);
/// input_ids [T], each of the first num_tokens[0] below `vocabulary` where that can be read.
void check_token_ids(const TensorView& ids, int64_t max_tokens, const TensorView& num_tokens,
                     int64_t vocabulary, bool on_host);
/// Optional [1] i32 between 0 and num_tokens.
void check_token_count(const char* name, const TensorView& count, int64_t num_tokens, bool on_host);

}  // namespace switchyard

template <>
struct fmt::formatter<switchyard::MatrixName> : fmt::formatter<const char*> {
  template <class Context>
  auto format(const switchyard::MatrixName& name, Context& context) const {
    return name.owner == nullptr ? fmt::format_to(context.out(), "{}", name.part)
                                 : fmt::format_to(context.out(), "{}.{}", name.owner, name.part);
  }
};
