"""The machine that a figure was measured on: without it the figure is worth little."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from octavo.base.host import num_cpus

_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
_PACKAGES = ("octavo", "torch", "numpy", "tokenizers")


def stamp() -> dict[str, Any]:
    """What is needed to judge a figure later. Take it before the measurement, for the load of others."""
    cpuinfo = _read("/proc/cpuinfo")
    pairs = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs.items()}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = [line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": num_cpus(),
        "isa": [flag for flag in _FLAGS if flag in flags],
        "cache_mib": round(last_cache_bytes() / 2**20, 1) or None,
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def last_cache_bytes() -> int:
    """The largest cache of the first processor, which others may share; 0 where the system does not tell."""
    sizes = [_read(str(file)).strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes if size[-1:] in ("K", "M")), default=0)


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
