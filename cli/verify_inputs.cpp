#include "cli/verify_inputs.h"

#include <cmath>
#include <functional>

#include "cli/random.h"

namespace switchyard::cli {
namespace {

/// Value of element (token, channel).
using Generator = std::function<double(Random&, int64_t token, int64_t channel)>;

struct Kind {
  const char* name;
  DataType type;
  Generator value;
};

double gaussian(Random& random, int64_t, int64_t) { return random.normal(); }

/// A few channels of a trained model's hidden states are tens of times larger than the rest; after
/// the norm before the block the rms is 1 all the same.
double outlier_channels(Random& random, int64_t, int64_t channel) {
  constexpr double kEvery = 97;
  constexpr double kFactor = 60;
  const double rms = std::sqrt(1 + (kFactor * kFactor - 1) / kEvery);
  return random.normal() * (channel % 97 == 5 ? kFactor : 1) / rms;
}

/// Nothing cancels in the dot products: offsets and block sums of integer kernels show.
double all_positive(Random& random, int64_t, int64_t) { return std::abs(random.normal()); }

double tiny(Random& random, int64_t, int64_t) { return random.normal() * 0x1p-30; }
double denormal(Random& random, int64_t, int64_t) { return random.normal() * 0x1p-130; }

/// A block whose largest value is zero has no scale.
double zero_rows(Random& random, int64_t token, int64_t) {
  const double value = random.normal();
  return token % 2 == 0 ? 0 : value;
}

/// A gap of 2^24 between neighbouring blocks of 32.
double uneven_blocks(Random& random, int64_t, int64_t channel) {
  return random.normal() * (channel / 32 % 2 == 0 ? 1 : 0x1p-24);
}

/// Picks single columns of the weights.
double one_hot(Random& random, int64_t token, int64_t channel, int64_t hidden_size) {
  const double value = 2 + random.uniform();
  return channel == (token * 2654435761 + 17) % hidden_size ? value : 0;
}

HostTensor generate(const Kind& kind, int64_t num_tokens, int64_t hidden_size, uint64_t seed) {
  const HostTensor values(DataType::kF32, {num_tokens, hidden_size});
  Random random(seed);
  for (int64_t i = 0; i < num_tokens * hidden_size; ++i) {
    values.as<float>()[i] =
        static_cast<float>(kind.value(random, i / hidden_size, i % hidden_size));
  }
  return convert(values.view(), kind.type);
}

HostTensor make_input_ids(const RouterTruth& router, int64_t num_tokens, uint64_t seed) {
  if (router.vocab_size() == 0) return {};
  HostTensor ids(DataType::kI64, {num_tokens});
  Random random(seed);
  for (int64_t t = 0; t < num_tokens; ++t) ids.as<int64_t>()[t] = random.below(router.vocab_size());
  return ids;
}

}  // namespace

std::vector<InputCase> make_input_cases(const LayerSpec& spec, const RouterTruth& router,
                                        int64_t num_tokens, uint64_t seed) {
  using enum DataType;
  const auto one_hot_here = [&spec](Random& random, int64_t token, int64_t channel) {
    return one_hot(random, token, channel, spec.hidden_size);
  };
  const std::vector<Kind> kinds{{"gaussian", kF32, gaussian},
                                {"gaussian", kBf16, gaussian},
                                {"gaussian", kF16, gaussian},
                                {"outlier channels", kBf16, outlier_channels},
                                {"all positive", kBf16, all_positive},
                                {"uneven blocks", kF32, uneven_blocks},
                                {"tiny", kF32, tiny},
                                {"denormal", kBf16, denormal},
                                {"zero rows", kBf16, zero_rows},
                                {"one-hot rows", kF32, one_hot_here}};
  std::vector<InputCase> cases;
  for (const Kind& kind : kinds) {
    ++seed;
    cases.push_back({kind.name, generate(kind, num_tokens, spec.hidden_size, seed),
                     make_input_ids(router, num_tokens, seed)});
  }
  if (router.can_tie()) {
    InputCase ties{
        "near-tied router", generate(kinds[0], num_tokens, spec.hidden_size, ++seed), {}};
    router.make_near_ties(ties.hidden_states.view());
    cases.push_back(std::move(ties));
  }
  return cases;
}

}  // namespace switchyard::cli
