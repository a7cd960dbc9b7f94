#!/bin/bash
# Times the routed experts beside llama.cpp's ggml on this machine, runs alternating.
#   scripts/ggml_compare.sh [--ggml PREFIX] [options of bench_ggml: --model --format --tokens --threads --rounds]
# PREFIX is where ggml or llama.cpp was installed (include/ggml.h, lib/libggml.so); without it pkg-config is asked.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=
if [[ ${1:-} == --ggml ]]; then
  [[ $# -ge 2 ]] || { echo "--ggml needs a directory" >&2; exit 2; }
  prefix=$(realpath -m "$2")
  shift 2
fi
if [[ -n $prefix && ! -f $prefix/include/ggml.h ]]; then
  echo "no ggml in $prefix: $prefix/include/ggml.h does not exist" >&2
  exit 1
elif [[ -z $prefix ]] && ! pkg-config --exists ggml 2>/dev/null; then
  echo "ggml is not installed (pkg-config does not know it); install llama.cpp or pass --ggml PREFIX" >&2
  exit 1
fi
cmake --preset cpu -DSWITCHYARD_BUILD_BENCHMARKS=ON -DSWITCHYARD_GGML="${prefix:-ON}" >/dev/null
cmake --build --preset cpu --target bench_ggml
build/cpu/bench/bench_ggml "$@"
