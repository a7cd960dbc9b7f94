#include "cli/bench_calibrate.h"

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/report.h"
#include "cli/table.h"
#include "switchyard/calibrate.h"

namespace switchyard::cli {
namespace {

double gbps(double bytes, double us) { return bytes / us * 1e-3; }

void print_rates(const MachineLimits& limits) {
  fmt::print("{}\n", limits.device);
  fmt::print("  read {:.1f} GB/s, copy {:.1f} GB/s (read and written)\n", limits.read_gbps,
             limits.copy_gbps);
  const auto rate = [](const char* name, double giga) {
    if (giga > 0) fmt::print("  {} {:.0f} G/s\n", name, giga);
  };
  rate("f32 ", limits.f32_gflops);
  rate("bf16", limits.bf16_gflops);
  rate("fp8 ", limits.fp8_gflops);
  rate("int8", limits.int8_gops);
}

void print_streams(const Calibration& calibration) {
  Table table({{"MB"}, {"read us"}, {"GB/s"}, {"write us"}, {"GB/s"}, {"copy us"}, {"GB/s"}});
  for (const StreamTimes& s : calibration.streams) {
    std::vector<std::string> row{fmt::format("{:.0f}", s.bytes * 1e-6)};
    for (const double us : {s.read_us, s.write_us, s.copy_us}) {
      row.push_back(fmt::format("{:.2f}", us));
      row.push_back(fmt::format("{:.0f}", gbps(s.bytes, us)));
    }
    table.add_row(row);
  }
  fmt::print("\n{}\nempty kernel: {:.2f} us in a graph of many, {:.2f} us alone\n", table.str(),
             calibration.launch_us, calibration.replay_us);
}

void save(const Calibration& calibration, const std::string& path) {
  Json report = new_report("calibrate");
  report["machine"] = to_json(this_machine());
  report["limits"] = to_json(calibration.limits);
  report["streams"] = Json::array();
  for (const StreamTimes& s : calibration.streams) {
    report["streams"].push_back({{"bytes", s.bytes},
                                 {"read_us", s.read_us},
                                 {"write_us", s.write_us},
                                 {"copy_us", s.copy_us},
                                 {"read_gbps", gbps(s.bytes, s.read_us)},
                                 {"write_gbps", gbps(s.bytes, s.write_us)},
                                 {"copy_gbps", gbps(s.bytes, s.copy_us)}});
  }
  report["launch_us"] = calibration.launch_us;
  report["replay_us"] = calibration.replay_us;
  save_report(path, report);
}

}  // namespace

int print_calibration(const LayerFlags& flags, const std::string& json_path) {
  const Calibration calibration = calibrate(flags.options().backend, flags.threads);
  print_rates(calibration.limits);
  if (!calibration.streams.empty()) print_streams(calibration);
  if (!json_path.empty()) save(calibration, json_path);
  return kOk;
}

}  // namespace switchyard::cli
