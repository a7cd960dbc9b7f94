#!/usr/bin/env bash
# Runs every GPU test and bench on this machine from built binaries and writes results/<gpu>/*.json.
# Usage: gpu_check.sh [--bin DIR] [--out DIR] [--commit ID] [--tests | --quick] [--sanitize] [--shapes SECONDS]
#   --bin: one folder with test_gpu, bench_{accuracy,gpu,layers,prefill,stages} and switchyard (default: where build/cuda has them)
#   --tests: no benches
#   --quick: only layers of up to 64 tokens
#   --sanitize: also compute-sanitizer's memcheck, racecheck and initcheck over a part of the tests
#   --shapes: also layers of the built-in shapes of at most 6 GiB, the smallest first, as many as fit into SECONDS (all: 200)
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bin='' out='' commit='' tests_only=0 quick=0 shapes=0 sanitize=0
while [ $# -gt 0 ]; do
  case $1 in
    --bin) bin=$2; shift ;;
    --out) out=$2; shift ;;
    --commit) commit=$2; shift ;;
    --tests) tests_only=1 ;;
    --quick) quick=1 ;;
    --shapes) shapes=$2; shift ;;
    --sanitize) sanitize=1 ;;
    *) echo "gpu_check.sh: unknown argument $1" >&2; exit 2 ;;
  esac
  shift
done
built=$here/build/cuda
tests=${bin:-$built/tests}/test_gpu
steps=${bin:-$built/bench}/bench_gpu
layers=${bin:-$built/bench}/bench_layers
prefill=${bin:-$built/bench}/bench_prefill
stages=${bin:-$built/bench}/bench_stages
accuracy=${bin:-$built/bench}/bench_accuracy
switchyard=${bin:-$built/cli}/switchyard
commit=${commit:-$(git -C "$here" describe --always --dirty)}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
folder=$(echo "${gpu#NVIDIA }" | tr 'A-Z ' 'a-z-')
out=${out:-$here/results/$folder}
mkdir -p "$out"
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
# After every part, so that a run cut short keeps what it has.
record() { python3 "$here/scripts/gpu_record.py" "$log" "$out" "$commit"; }

export SWITCHYARD_FIXTURES=$here/fixtures
# Starts the command, a gtest binary, in $2 shards that log to $1.<shard>.log; their ids are in `pids`.
start_shards() {
  local name=$1 shards=$2 i
  shift 2
  for ((i = 0; i < shards; i++)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i "$@" --gtest_output="json:$log/$name.$i.json" >"$log/$name.$i.log" 2>&1 &
    pids+=($!)
  done
}
wait_shards() {
  local pid
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  pids=()
}
status=0 pids=()
# Most of a test's time is its double-precision reference on the CPU: as many at once as cores allow.
start_shards tests $(($(nproc) > 16 ? 16 : $(nproc))) "$tests"
"$accuracy" --backend cuda --json "$log/accuracy.json" >"$log/accuracy.log" 2>&1 &
pids+=($!)
wait_shards
grep -h -A 25 'Failure' "$log"/tests.*.log | head -80 || true
grep -h '^\[  FAILED  \]' "$log"/tests.*.log | sort -u || true
record
[ $status = 0 ] || exit $status  # times of a build that computes something else say nothing

part='GpuSort.DeviceSide*:GpuSort.OutputsMay*:GpuSort.FewTokens*:GpuSort.Lopsided*:GpuRoute.Ties*:GpuRoute.Groups:GpuRouteSort.Ties*'
part+=':GpuQuantize.Gathered*:GpuActivateQuantize.*:GpuCombine.*:GpuExperts.EveryActivation*:GpuExperts.Dense'
part+=':GpuLayer.GraphReplays*:GpuDense.*'
matrix='Sm90Decode.OneExpertForAll:All/Sm90DecodeFormat.LopsidedRouting/*:GpuSm90Gemm.LopsidedBatches:GpuSm90Fp4Prefill.LopsidedBatches'
matrix+=':All/Sm90DecodeFormat.SingleRoutedToken*/mxfp4_1x32_by_fp8_per_token:All/GpuSm90Fp4PrefillOf.EveryOperandKind/*:GpuLinear.TokensCountedOnTheDevice:All/GpuDenseOf.AgreesWithTheReference/*'
if [ $sanitize = 1 ]; then
  for tool in memcheck racecheck initcheck; do
    case $tool in
      memcheck) filter=$part:$matrix shards=10 ;;
      racecheck) filter=$part-*EveryActivationFormat shards=3 ;;  # alone 41 of its 100 s; the same kernels run in the others
      initcheck) filter=$part shards=3 ;;
    esac
    start_shards $tool $shards compute-sanitizer --tool $tool --error-exitcode 3 "$tests" --gtest_filter="$filter"
  done
  wait_shards
  grep -h 'SUMMARY' "$log"/{memcheck,racecheck,initcheck}.*.log | sort | uniq -c
  record
  [ $status = 0 ] || exit $status
fi
[ $tests_only = 0 ] || exit 0

"$switchyard" bench --calibrate --backend cuda --json "$log/limits.json"
"$steps" --both-sort-paths --json "$log/steps.json"
[ $quick = 1 ] || "$prefill" --json "$log/prefill.json" | tail -2
"$stages" --json "$log/stages.json"
python3 "$here/scripts/kernel_resources.py" "$tests" "$log/kernels.json" || true  # without cuobjdump
record
tokens=1,8,64
[ $quick = 1 ] || tokens=1,8,64,256,1024,8192
# One row of the table below per run: models, weights, activations, and what else there is of the layers.
while read -r models weights activations scope; do
  "$layers" --models "$models" --formats "$weights" --activations "$activations" --tokens $tokens \
    "${scope:---routed-only}" --weight-sets 4 --budget 0.1 --json "$log/layers.$models.$weights.$activations.$scope.json"
  record
done <<'RUNS'
deepseek-r1-tp8,gpt-oss-120b,qwen3-235b-a22b-ep4,deepseek-r1-ep8 mxfp4 none
deepseek-r1-tp8,gpt-oss-120b,deepseek-r1-ep8 mxfp4 fp8_per_token
deepseek-r1-tp8,deepseek-r1-ep8 fp8_e4m3 fp8_block128
qwen3-30b-a3b,deepseek-r1-ep8 bf16 none
deepseek-r1-ep8 int8 int8_per_token
kimi-k2-thinking-tp8 int4 none
minimax-m3-tp8 mxfp8 none
deepseek-r1-tp8 nvfp4 none
deepseek-r1-tp8 fp8_e4m3 fp8_block128 --from-hidden
gpt-oss-120b mxfp4 none --from-hidden
RUNS
if python3 -c 'import torch' 2>/dev/null; then
  python3 "$here/scripts/gpu_peers.py" "$log/peers.json"
  record
  "$switchyard" models --json >"$log/models.json"
  # triton_kernels: if on PYTHONPATH
  python3 "$here/scripts/gpu_layer_peers.py" "$log/layer_peers.json" "$log/models.json" $tokens
fi
record
if [ "$shapes" != 0 ]; then
  timeout "$shapes" "$layers" --models all --tokens 1,8,64,512,4096,16384 --routed-only --weights-gib 1 --budget 0.05 \
    --json "$log/shapes.json" || true
  record
fi
