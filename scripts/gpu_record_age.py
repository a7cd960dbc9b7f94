#!/usr/bin/env python3
"""Says, without failing, when the CUDA sources, src/cuda/sm90 included, are newer than the last GPU record in results/."""
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def last_commit_time(*paths):
    """Unix time of the newest commit that touches `paths`, 0 when there is none."""
    run = subprocess.run(["git", "log", "-1", "--format=%ct", "--", *paths], cwd=ROOT, capture_output=True, text=True)
    return int(run.stdout.strip() or 0) if run.returncode == 0 else 0


def main():
    if not list((ROOT / "src/cuda").rglob("*.cu")):
        return
    sources, record = last_commit_time("src/cuda", "src/core"), last_commit_time("results/h200")
    if sources > record:
        print("note: src/cuda or src/core is newer than the last GPU record in results/h200; "
              "run scripts/gpu_check.sh on a GPU machine")
    else:
        print("the GPU record in results/h200 is as new as the CUDA sources")


if __name__ == "__main__":
    main()
