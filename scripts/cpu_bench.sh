#!/usr/bin/env bash
# Records the CPU bench of this machine in results/cpu/ and renews README's tables from it.
# Usage: cpu_bench.sh PATH_TO_SWITCHYARD
set -euo pipefail
cd "$(dirname "$0")/.."
switchyard=${1:?usage: cpu_bench.sh PATH_TO_SWITCHYARD}
mkdir -p results/cpu

bench() { # model format tokens
  "$switchyard" bench --model "$1" --format "$2" --tokens "$3" --budget 10 --json "results/cpu/$1-$2.json"
}
for format in mxfp4 int8 bf16 fp8_e4m3; do
  bench qwen3-30b-a3b "$format" 1,16,64,256,1024
done
bench gpt-oss-20b mxfp4 1,16,64,256,1024
python3 scripts/readme_tables.py
