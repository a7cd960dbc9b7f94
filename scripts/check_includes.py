#!/usr/bin/env python3
"""Checks that includes point downhill (ARCHITECTURE.md). Usage: check_includes.py ROOT"""
import pathlib
import re
import sys

# folder under the root -> project folders it may include from, itself always included
ALLOWED = {
    "include/switchyard": {"switchyard"},
    "src/core": {"core", "switchyard"},
    "src/layer": {"layer", "core", "backend.h", "switchyard"},
    "src/checkpoint": {"checkpoint", "core", "switchyard"},
    "src/reference": {"reference", "core", "backend.h", "switchyard"},
    "src/cpu": {"cpu", "core", "backend.h", "switchyard"},
    "src/cuda": {"cuda", "core", "backend.h", "switchyard"},
    "src": {"layer", "core", "backend.h", "switchyard"},
    "cli": {"switchyard", "cli"},
    "examples": {"switchyard"},
}
# The value types of these public headers need nothing and may be used by core/ on host and device.
CORE_MAY_USE = {"switchyard/layer_spec.h", "switchyard/tensor.h", "switchyard/weights.h"}
PROJECT = {"core", "layer", "checkpoint", "reference", "cpu", "cuda", "backend.h", "switchyard", "cli"}
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.M)


def room(path):
    """The most specific folder of ALLOWED that holds the file."""
    return max((k for k in ALLOWED if path.startswith(k + "/")), key=len, default=None)


def main():
    root = pathlib.Path(sys.argv[1])
    errors = []
    for folder in ("include", "src", "cli", "examples"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".h", ".hpp", ".cpp", ".cu", ".cuh", ".c"}:
                continue
            name = path.relative_to(root).as_posix()
            here = room(name)
            for target in INCLUDE.findall(path.read_text()):
                top = target.split("/")[0]
                if here == "include/switchyard" and re.match(r"(cuda|nccl|fmt|nlohmann|CLI|torch)", target):
                    errors.append(f"{name}: public headers must not reach {target}")
                if top not in PROJECT or ("/" not in target and top != "backend.h"):
                    continue
                if top not in ALLOWED[here]:
                    errors.append(f"{name}: {here}/ must not include {target}")
                if here == "src/core" and top == "switchyard" and target not in CORE_MAY_USE:
                    errors.append(f"{name}: core/ may use only {', '.join(sorted(CORE_MAY_USE))}, not {target}")
    print("\n".join(errors) if errors else "include directions hold")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
