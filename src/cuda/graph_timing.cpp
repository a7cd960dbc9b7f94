#include "cuda/graph_timing.h"

#include <algorithm>

#include "core/math.h"
#include "cuda/streaming.h"

namespace switchyard::cuda {
namespace {

/// Median time of one replay of a graph that launches copies [0, count). Long ones are replayed
/// less often, but three times at least.
double replay_us(const Launch& launch, int count, double budget_s) {
  constexpr size_t kLeastReplays = 3, kMostReplays = 21;
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  for (int i = 0; i < count; ++i) launch(i, stream);
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  std::vector<double> times;
  double spent_us = 0;
  const auto replay = [&] {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    check(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    spent_us += static_cast<double>(ms) * 1e3;
    return static_cast<double>(ms) * 1e3;
  };
  constexpr double kWarmUpUs = 1000;
  do {
    replay();
  } while (spent_us < kWarmUpUs);
  while (times.size() < kLeastReplays ||
         (times.size() < kMostReplays && spent_us < budget_s * 1e6)) {
    times.push_back(replay());
  }
  check(cudaGraphExecDestroy(exec), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  check(cudaEventDestroy(begin), "cudaEventDestroy");
  check(cudaEventDestroy(end), "cudaEventDestroy");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

constexpr int64_t kRotatedBytes = int64_t{512} << 20;  // eight times the H200's L2
constexpr int kMinCopies = 8;
constexpr int kMaxCopies = 40;

}  // namespace

int rotation(int64_t bytes_per_copy) {
  return static_cast<int>(std::clamp<int64_t>(kRotatedBytes / std::max<int64_t>(bytes_per_copy, 1),
                                              kMinCopies, kMaxCopies));
}

Timing time_graph(const Launch& launch, int copies, double budget_s) {
  Timing timing;
  timing.chain_us = replay_us(launch, copies, budget_s) / copies;
  timing.single_us = replay_us(launch, 1, budget_s);
  return timing;
}

Limits::Limits() : memory_(int64_t{6} << 30) {
  fill_random(memory_.data(), memory_.bytes(), true, 1, nullptr);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  empty_ = time_graph([](int, cudaStream_t stream) { launch_empty(stream); }, kMaxCopies);
}

double Limits::cached(std::map<int64_t, double>& known, int64_t bytes, Kind kind) {
  const int64_t most = memory_.bytes() / 2;
  if (bytes > most) {  // at this size time goes with bytes
    return cached(known, most, kind) * static_cast<double>(bytes) / static_cast<double>(most);
  }
  const int64_t rounded = align_up<int64_t>(std::max<int64_t>(bytes, 512), 512);
  const auto found = known.find(rounded);
  if (found != known.end()) return found->second;
  const int copies = rotation(rounded);
  const int64_t places = memory_.bytes() / rounded;
  double best = 0;
  for (const auto style : {StreamStyle::kPieces, StreamStyle::kWalk, StreamStyle::kOverlap}) {
    const Launch launch = [&](int i, cudaStream_t stream) {
      char* at = memory_.as<char>() + (i % places) * rounded;
      switch (kind) {
        case Kind::kRead: return launch_read(at, rounded, style, stream);
        case Kind::kWrite: return launch_write(at, rounded, style, stream);
        case Kind::kCopy: return launch_copy(at + rounded / 2, at, rounded / 2, style, stream);
      }
    };
    const double us = time_graph(launch, copies).chain_us;
    best = best == 0 ? us : std::min(best, us);
  }
  return known[rounded] = best;
}

}  // namespace switchyard::cuda
