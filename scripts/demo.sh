#!/usr/bin/env bash
# The main job from end to end: the MoE block of a checkpoint is computed, compared with the output that
# transformers gave for it, verified, and production shapes are timed. Usage: demo.sh PATH_TO_SWITCHYARD
set -euo pipefail
switchyard=$(realpath "${1:?usage: demo.sh PATH_TO_SWITCHYARD}")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fixture=fixtures/gpt_oss_mxfp4

title() { printf '\n=== %s\n' "$1"; }
show() { # runs switchyard and shows the command line that a user would type
  printf '$ switchyard %s\n' "${*//$work/\/tmp}"
  "$switchyard" "$@"
}

title "A small gpt-oss checkpoint with MXFP4 weights, written by transformers: what is in it?"
show inspect "$fixture"

title "Compute its MoE block for the hidden states of the fixture"
python3 scripts/safetensors_tool.py pick "$fixture/expected.safetensors" "$work/in.safetensors" hidden_states
show run "$fixture" --layer 0 --input "$work/in.safetensors" --output "$work/out.safetensors"
echo "against transformers, activations rounded to int8 (the CPU's default for 4-bit weights):"
python3 scripts/safetensors_tool.py compare "$work/out.safetensors" "$fixture/expected.safetensors" output
show run "$fixture" --layer 0 --input "$work/in.safetensors" --output "$work/out.safetensors" --activations none
echo "against transformers, activations not rounded:"
python3 scripts/safetensors_tool.py compare "$work/out.safetensors" "$fixture/expected.safetensors" output

title "Verify the backend against the reference in double precision"
show verify "$fixture" --layer 0

for model in qwen3-30b-a3b gpt-oss-20b; do
  title "Time a production layer on this machine: $model, random MXFP4 weights, cold"
  show bench --model "$model" --format mxfp4 --tokens 1,16,64 --budget 12
done
