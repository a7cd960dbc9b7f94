#!/usr/bin/env bash
# Builds the libFuzzer targets and runs each for SECONDS. Usage: fuzz.sh SECONDS
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: fuzz.sh SECONDS}
cmake --preset fuzz
cmake --build --preset fuzz
for target in build/fuzz/tests/fuzz/fuzz_*; do
  [ -x "$target" ] && [ -f "$target" ] || continue
  name=$(basename "$target")
  work=build/fuzz/corpus/$name
  mkdir -p "$work"
  echo "== $name, $seconds s"
  "$target" -max_total_time="$seconds" -max_len=65536 -timeout=10 -print_final_stats=1 "$work" "tests/fuzz/corpus/$name"
done
