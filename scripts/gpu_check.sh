#!/usr/bin/env bash
# Runs every GPU test and bench on this machine from built binaries and writes results/<gpu>/*.json.
# Usage: gpu_check.sh [--bin DIR] [--out DIR] [--commit ID] [--sanitize]
#   --bin: where test_gpu and bench_gpu are (default: build/cuda/tests and build/cuda/bench)
#   --sanitize: also compute-sanitizer's memcheck, racecheck and initcheck over a part of the tests
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bin='' out='' commit='' sanitize=0
while [ $# -gt 0 ]; do
  case $1 in
    --bin) bin=$2; shift ;;
    --out) out=$2; shift ;;
    --commit) commit=$2; shift ;;
    --sanitize) sanitize=1 ;;
    *) echo "gpu_check.sh: unknown argument $1" >&2; exit 2 ;;
  esac
  shift
done
tests=${bin:-$here/build/cuda/tests}/test_gpu
bench=${bin:-$here/build/cuda/bench}/bench_gpu
commit=${commit:-$(git -C "$here" describe --always --dirty)}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
folder=$(echo "${gpu#NVIDIA }" | tr 'A-Z ' 'a-z-')
out=${out:-$here/results/$folder}
mkdir -p "$out"
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

status=0
"$tests" --gtest_output="json:$log/tests.json" >"$log/tests.log" 2>&1 || status=$?
tail -3 "$log/tests.log"
part='GpuSort.DeviceSide*:GpuSort.OutputsMay*:GpuSort.Repeated*:GpuSort.Lopsided*:GpuRoute.Ties*:GpuRoute.Groups'
part+=':GpuQuantize.Gathered*:GpuCombine.*:GpuExperts.EveryActivation*:GpuExperts.Dense:GpuLayer.GraphReplays*'
if [ $sanitize = 1 ]; then
  for tool in memcheck racecheck initcheck; do
    compute-sanitizer --tool $tool --error-exitcode 3 "$tests" --gtest_filter="$part" \
      >"$log/$tool.log" 2>&1 || status=$?
    grep 'SUMMARY' "$log/$tool.log" | tee "$log/$tool.summary"
  done
fi
"$bench" --both-sort-paths --json "$log/steps.json"
if python3 -c 'import torch' 2>/dev/null; then
  python3 "$here/scripts/gpu_peers.py" "$log/peers.json"
fi
python3 "$here/scripts/gpu_record.py" "$log" "$out" "$commit"
exit $status
