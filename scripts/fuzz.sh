#!/usr/bin/env bash
# Builds the libFuzzer targets and runs each for SECONDS. Usage: fuzz.sh SECONDS
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: fuzz.sh SECONDS}
cmake --preset fuzz
cmake --build --preset fuzz --target fuzz_safetensors fuzz_config
for name in safetensors config; do
  work=build/fuzz/corpus/$name
  mkdir -p "$work"
  echo "== fuzz_$name, $seconds s"
  build/fuzz/tests/fuzz/fuzz_$name -max_total_time="$seconds" -max_len=65536 -timeout=10 \
    -print_final_stats=1 "$work" "tests/fuzz/corpus/$name"
done
