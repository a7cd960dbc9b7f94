#!/usr/bin/env bash
# Installs what a build needs, with apt when it may; otherwise prints the exact list and stops.
set -euo pipefail

packages=(g++ cmake ninja-build ccache python3 libfmt-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev)

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
else
  for tool in g++ cmake ninja python3; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} -eq 0 ] && exit 0
fi
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo); else as_root=(false); fi
fi
if command -v apt-get >/dev/null && [ "${as_root[*]}" != false ]; then
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  if "${as_root[@]}" apt-get update -qq &&
     "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
    exit 0
  fi
fi
echo "setup: these packages are needed and could not be installed from here:" >&2
echo "  sudo apt-get install ${missing[*]}" >&2
exit 1
