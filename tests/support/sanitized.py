"""pytest with another build of the native module: `sanitized.py DIRECTORY [arguments of pytest]`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import octavo


def main(directory: str, *arguments: str) -> int:
    (path,) = Path(directory).glob("_cpu.*.so")
    spec = importlib.util.spec_from_file_location("octavo._cpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["octavo._cpu"] = octavo._cpu = module
    spec.loader.exec_module(module)
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *arguments]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
