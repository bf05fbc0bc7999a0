"""python deploy/wheels/check.py WHEEL...: what a wheel of octavo must hold, and what it must not."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

#: Files that are read at run time or by type checkers, and that no compiler would miss.
NEEDED = ("octavo/py.typed", "octavo/server/ui.html")
_MODULE = re.compile(r"octavo/_cpu\.(cpython-3\d+-[\w-]+|abi3)\.so")
_METADATA = re.compile(r"octavo-[\w.+]+\.dist-info/.+")


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel, one sentence a fault."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    found = [f"{name} is missing" for name in NEEDED if name not in names]
    modules = sorted(name for name in names if name.endswith((".so", ".dylib")))
    if len(modules) != 1 or not _MODULE.fullmatch(modules[0]):
        found.append(f"one native module is wanted, there are {modules}")
    elif ("-abi3-" in wheel.name) != modules[0].endswith(".abi3.so"):
        found.append(f"{modules[0]} does not fit the wheel's tag")
    if not any(re.fullmatch(r"octavo-[^/]+\.dist-info/licenses/LICENSE", name) for name in names):
        found.append("the license is missing")
    strange = sorted(name for name in names if not name.startswith("octavo/") and not _METADATA.fullmatch(name))
    return found + [f"{name} does not belong in it" for name in strange]


def main(paths: list[str]) -> int:
    exit_code = 0
    for path in paths:
        for fault in faults(Path(path)):
            print(f"{path}: {fault}", file=sys.stderr)
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
