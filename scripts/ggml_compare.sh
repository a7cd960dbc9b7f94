#!/bin/bash
# Times the routed experts beside llama.cpp's ggml on this machine, runs alternating.
#   scripts/ggml_compare.sh [--ggml PREFIX | --pypi] [--record | options of bench_ggml: --model --format --tokens ...]
# PREFIX is where ggml or llama.cpp was installed (include/ggml.h, lib/libggml.so); without it pkg-config is asked.
# --pypi builds ggml for this machine from the source that pip gets for llama-cpp-python, under build/ggml (3 minutes).
# --record writes results/cpu/ggml/ and renews README's tables.
set -euo pipefail
cd "$(dirname "$0")/.."

build_from_pypi() { # into build/ggml/installed
  mkdir -p build/ggml
  pip download --quiet --no-deps --no-binary llama-cpp-python --dest build/ggml llama-cpp-python
  tar xzf build/ggml/llama_cpp_python-*.tar.gz -C build/ggml --strip-components=3 --wildcards '*/vendor/llama.cpp/ggml'
  touch build/ggml/ggml/ggml.pc.in # the package leaves this template out
  cmake -S build/ggml/ggml -B build/ggml/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON \
    -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_PREFIX="$PWD/build/ggml/installed" >/dev/null
  cmake --build build/ggml/build --target install >/dev/null
}

prefix=
if [[ ${1:-} == --ggml ]]; then
  [[ $# -ge 2 ]] || { echo "--ggml needs a directory" >&2; exit 2; }
  prefix=$(realpath -m "$2")
  shift 2
elif [[ ${1:-} == --pypi ]]; then
  prefix=$PWD/build/ggml/installed
  [[ -f $prefix/include/ggml.h ]] || build_from_pypi
  shift
fi
if [[ -n $prefix && ! -f $prefix/include/ggml.h ]]; then
  echo "no ggml in $prefix: $prefix/include/ggml.h does not exist" >&2
  exit 1
elif [[ -z $prefix ]] && ! pkg-config --exists ggml 2>/dev/null; then
  echo "ggml is not installed (pkg-config does not know it); install llama.cpp, or pass --ggml PREFIX or --pypi" >&2
  exit 1
fi
cmake --preset cpu -DSWITCHYARD_BUILD_BENCHMARKS=ON -DSWITCHYARD_GGML="${prefix:-ON}" >/dev/null
cmake --build --preset cpu --target bench_ggml
# libggml.so looks for libggml-cpu.so by itself.
[[ -z $prefix ]] || export LD_LIBRARY_PATH="$prefix/lib:$prefix/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [[ ${1:-} != --record ]]; then
  exec build/cpu/bench/bench_ggml "$@"
fi
mkdir -p results/cpu/ggml
for format in mxfp4 int8 bf16; do
  build/cpu/bench/bench_ggml --format "$format" --json "results/cpu/ggml/qwen3-30b-a3b-$format.json"
done
python3 scripts/readme_tables.py
