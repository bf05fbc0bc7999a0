"""The machine that a figure was measured on, and what it could do at best at that moment."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def stamp() -> dict[str, Any]:
    """What is needed to judge a figure later."""
    cpuinfo = _read("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = [line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": fields.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("octavo", "torch", "tokenizers")},
        "commit": _commit(),
    }


def limits() -> dict[str, float] | None:
    """Memory bandwidth and arithmetic peaks, measured now by limits.cpp; None without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        binary = Path(scratch) / "limits"
        command = [
            compiler,
            "-std=c++20",
            "-O3",
            "-march=native",
            "-pthread",
            str(HERE / "limits.cpp"),
            "-o",
            str(binary),
        ]
        subprocess.run(command, check=True)
        run = subprocess.run([str(binary)], capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None
