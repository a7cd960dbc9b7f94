#!/usr/bin/env python3
"""Checks that a shared library shows the public names and nothing else.

Usage: check_symbols.py ROOT LIBRARY
Public are the names that include/switchyard/*.h marks with SWITCHYARD_EXPORT or SY_API.
"""
import pathlib
import re
import subprocess
import sys

CLASS = re.compile(r"(?:class|struct) SWITCHYARD_EXPORT (\w+)")
FUNCTION = re.compile(r"^(?:SWITCHYARD_EXPORT|SY_API)\s[^;{(]*?(\w+)\(", re.M)
PREFIX = re.compile(r"^(?:typeinfo(?: name)? for |vtable for )?switchyard::(?:ops::)?(\w+)")


def main():
    root, library = pathlib.Path(sys.argv[1]), sys.argv[2]
    text = "".join(p.read_text() for p in sorted((root / "include/switchyard").glob("*.h")))
    public = set(CLASS.findall(text)) | set(FUNCTION.findall(text))
    listing = subprocess.run(["nm", "-DC", "--defined-only", library], check=True, text=True,
                             capture_output=True).stdout
    shown, errors = set(), []
    for line in listing.splitlines():
        name = line.split(" ", 2)[2]
        match = PREFIX.match(name)
        public_name = match.group(1) if match else name
        shown.add(public_name)
        if public_name not in public:
            errors.append(f"shown but not public: {name}")
    # An interface without out-of-line members has no symbol of its own.
    errors += [f"public but not shown: {name}" for name in sorted(public - shown - {"Executor"})]
    print("\n".join(errors) if errors else f"{len(shown)} public names, nothing else")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
