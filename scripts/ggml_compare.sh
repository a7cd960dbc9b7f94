#!/bin/bash
# Times the routed experts beside llama.cpp's or ik_llama.cpp's ggml on this machine, runs alternating.
#   scripts/ggml_compare.sh [--ggml PREFIX | --pypi | --ik CHECKOUT] [--record | options of bench_ggml: --model --format ...]
# PREFIX is where either ggml was installed (include/ggml.h, lib/libggml.so); without it pkg-config is asked.
# --pypi builds llama.cpp's for this machine from the source that pip gets for llama-cpp-python, under build/ggml (3 minutes).
# --ik builds ik_llama.cpp's from a checkout of it, under build/ik_llama (10 minutes; without its attention kernels).
# --record writes results/cpu/ggml/ or results/cpu/ik_llama/ and renews README's tables.
set -euo pipefail
cd "$(dirname "$0")/.."

build() { # of DIR/ggml, into DIR/installed
  local dir=$1
  touch "$dir/ggml/ggml.pc.in" # some source packages leave this template out
  cmake -S "$dir/ggml" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_STANDARD=20 -DGGML_NATIVE=ON \
    -DBUILD_SHARED_LIBS=ON -DGGML_IQK_FLASH_ATTENTION=OFF -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF \
    -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_PREFIX="$PWD/$dir/installed" >/dev/null
  cmake --build "$dir/build" --target install >/dev/null
}

prefix=
case ${1:-} in
--ggml)
  [[ $# -ge 2 ]] || { echo "--ggml needs a directory" >&2; exit 2; }
  prefix=$(realpath -m "$2")
  shift 2
  ;;
--pypi)
  prefix=$PWD/build/ggml/installed
  if [[ ! -f $prefix/include/ggml.h ]]; then
    mkdir -p build/ggml
    pip download --quiet --no-deps --no-binary llama-cpp-python --dest build/ggml llama-cpp-python
    tar xzf build/ggml/llama_cpp_python-*.tar.gz -C build/ggml --strip-components=3 --wildcards '*/vendor/llama.cpp/ggml'
    build build/ggml
  fi
  shift
  ;;
--ik)
  [[ -f ${2:-}/ggml/include/ggml.h ]] || { echo "--ik needs a checkout of ik_llama.cpp; ${2:-} has no ggml/include/ggml.h" >&2; exit 2; }
  prefix=$PWD/build/ik_llama/installed
  if [[ ! -f $prefix/include/ggml.h ]]; then
    mkdir -p build/ik_llama
    cp -r "$2/ggml" build/ik_llama/
    build build/ik_llama
  fi
  shift 2
  ;;
esac
if [[ -n $prefix && ! -f $prefix/include/ggml.h ]]; then
  echo "no ggml in $prefix: $prefix/include/ggml.h does not exist" >&2
  exit 1
elif [[ -z $prefix ]] && ! pkg-config --exists ggml 2>/dev/null; then
  echo "ggml is not installed (pkg-config does not know it); install llama.cpp, or pass --ggml PREFIX, --pypi or --ik CHECKOUT" >&2
  exit 1
fi
# The libraries found for another prefix would stay.
cmake --preset cpu -UGGML_LIBRARY -UGGML_BASE_LIBRARY -DSWITCHYARD_BUILD_BENCHMARKS=ON -DSWITCHYARD_GGML="${prefix:-ON}" >/dev/null
cmake --build --preset cpu --target bench_ggml
# libggml.so looks for libggml-cpu.so by itself.
[[ -z $prefix ]] || export LD_LIBRARY_PATH="$prefix/lib:$prefix/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [[ ${1:-} != --record ]]; then
  exec build/cpu/bench/bench_ggml "$@"
fi
results=results/cpu/ggml
if [[ -n $prefix ]] && grep -q ggml_moe_up_gate "$prefix/include/ggml.h"; then results=results/cpu/ik_llama; fi
mkdir -p $results
for format in mxfp4 int8 bf16; do
  build/cpu/bench/bench_ggml --format "$format" --json "$results/qwen3-30b-a3b-$format.json"
done
python3 scripts/readme_tables.py
