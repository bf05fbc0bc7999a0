#!/usr/bin/env bash
# Checks octavo on one NVIDIA GPU against the reference, then measures it. Prints one table last.
#
#   bench/gpu.sh --part 1; bench/gpu.sh --part 2      where a GPU is lent for minutes: 270 seconds each
#   bench/gpu.sh [--only NAME,...] [--list] [--quick] [--budget SECONDS] [--json FILE] [--set NAME=VALUE] [--dry-run]
#   WHEELS=DIR bench/gpu.sh ...      packages that the machine lacks, as wheels; installed for this run only
#   PYTHON=/path/python bench/gpu.sh ...
#
# A run takes at most nine minutes; what does not fit the budget is skipped, least worth first, and the table says so.
# Rows are written to $OUT as they are known, or beside the file of --json; the table after each stage.
# Exit code 0: all checks passed; 1: one failed; 2: it could not begin. Nothing is built or fetched: octavo runs from
# src/, the weights are random and made on the device, and the files it needs are written to a temporary directory.
#
# Needed: Python 3.11 or later with torch 2.9+ (CUDA), triton 3.5+, transformers 5, and what those bring along. octavo
# imports more, which such a machine may lack. Fetch it where there is a network, for the other machine's Python (here
# 3.12), and carry the folder (14 MB):
#
#   pip download -c constraints.txt --only-binary=:all: --no-deps --python-version 3.12 --implementation cp \
#     --platform manylinux1_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
#     --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_31_x86_64 -d wheels \
#     msgspec llguidance gguf pydantic pydantic-core annotated-types typing-inspection starlette anyio idna uvicorn \
#     click h11 httptools uvloop prometheus-client psutil tqdm jinja2 markupsafe \
#     pytest pluggy iniconfig pygments execnet pytest-xdist
#
# The last line is for the tests of the operations; with pytest-xdist their kernels compile on all cores.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
if [[ -z "${PYTHON:-}" && "$*" == *--dry-run* && -x "$here/../.venv/bin/python" ]]; then
  python="$here/../.venv/bin/python"
fi
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
fi

path="$here:$here/../src"
if [[ -n "${WHEELS:-}" ]]; then
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$WHEELS"/*.whl || exit 2
  path="$path:$site"
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
# Nothing is to be looked for on a network.
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error

"$python" -m gpu.main "$@"
