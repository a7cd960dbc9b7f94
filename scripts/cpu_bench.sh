#!/usr/bin/env bash
# Records the CPU bench of this machine in results/cpu/, renews the tables of README and docs/measured.md from it, and prints
# the figures that were asked for beside those reached. 2 to 3 minutes.
# Usage: cpu_bench.sh PATH_TO_SWITCHYARD
set -euo pipefail
cd "$(dirname "$0")/.."
switchyard=${1:?usage: cpu_bench.sh PATH_TO_SWITCHYARD}
mkdir -p results/cpu

bench() { # model format tokens [suffix of the record, more options ...]
  "$switchyard" bench --model "$1" --format "$2" --tokens "$3" --budget 10 --json "results/cpu/$1-$2${4:-}.json" "${@:5}"
}
for format in mxfp4 int8 bf16 fp8_e4m3; do
  bench qwen3-30b-a3b "$format" 1,16,64,256,1024
done
bench gpt-oss-20b mxfp4 1,16,64,256,1024
bench qwen3-30b-a3b mxfp4 1,16,64,256,1024 -none --activations none
for format in mxfp4 int8; do
  SWITCHYARD_CPU_ISA=avx2 bench qwen3-30b-a3b "$format" 1,64,1024 -avx2
done
python3 scripts/readme_tables.py
sed -n '/begin cpu-figures/,/end cpu-figures/p' docs/measured.md | sed '1d;$d'
