"""What there is of octavo's installation, its machine and its environment, without loading torch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import octavo
from octavo.base import host
from octavo.base.cgroup import Cgroups
from octavo.base.command_line import HIDDEN
from octavo.base.errors import DeviceError
from octavo.base.native import has_native_cpu

#: Packages that octavo uses where they are, beside those that it requires.
_OPTIONAL = ("triton", "flashinfer-python", "transformers", "safetensors", "accelerate", "openai", "vllm")
#: Variables that change what octavo or its libraries do.
_RELEVANT = re.compile(
    r"(OCTAVO|VLLM|HF|HUGGINGFACE|TRANSFORMERS|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TRITON|FLASHINFER|OMP|MKL|KMP|GOMP|MALLOC|"
    r"UV|PIP|OPENAI|KUBERNETES|SLURM)_\w+|CC|CXX|LD_PRELOAD|LD_LIBRARY_PATH|PYTHON\w+|VIRTUAL_ENV|CONDA_PREFIX|"
    r"(HTTPS?|ALL|NO)_PROXY|LANG|LC_ALL|TERM|TMPDIR|XDG_CACHE_HOME",
    re.IGNORECASE,
)
_CPU_FLAG = re.compile(r"avx|amx|fma$|f16c$|asimd|sve\d?$|sme\d?$|bf16|i8mm|sse4_2$")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|SIGNATURE", re.IGNORECASE)
#: User and password in an address, and its query.
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=\?)\S+")
_GPU_FIELDS = ("name", "uuid", "driver_version", "compute_cap", "memory.total", "memory.used", "mig.mode.current")
_SECONDS = 20.0

Section = dict[str, Any]


def installation(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Sections of plain values; None where the system does not tell. Raises nothing."""
    return {
        "octavo": _octavo(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "system": _system(),
        "cpu": _cpu(),
        "memory": _memory(),
        "gpu": _gpu(),
        "packages": _packages(),
        "variables": variables(environ),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report for people, a section under its name."""
    lines: list[str] = []
    for title, section in report.items():
        lines.append(f"{title}:")
        width = max(map(len, section), default=0)
        for name, value in section.items():
            values = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else [value]
            lines += [f"  {name:<{width}}  {_shown(item)}" for item in values]
    return "\n".join(lines)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The relevant variables; what may be a secret is hidden, in addresses user, password and query."""
    return {
        name: HIDDEN if value and _SECRET.search(name) else _IN_URL.sub(HIDDEN, value)
        for name, value in sorted(environ.items())
        if _RELEVANT.fullmatch(name)
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "not known" if value is None else str(value)


def _octavo() -> Section:
    native: Section = {"native_module": "was not built"}
    try:
        if has_native_cpu():
            cpu = importlib.import_module("octavo._cpu")
            native = {"native_module": "loaded", "isa": cpu.isa(), "available_isas": list(cpu.available_isas())}
    except DeviceError as exc:
        native = {"native_module": exc.message}
    return {"version": octavo.__version__, "path": str(Path(octavo.__file__).parent), **native}


def _system() -> Section:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    in_container = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    return {
        "platform": platform.platform(),
        "distribution": _distribution(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "container": in_container or "KUBERNETES_SERVICE_HOST" in os.environ,
        "open_files_limit": files,
        "locked_memory_limit": "unlimited" if locked == resource.RLIM_INFINITY else locked,
    }


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _cpu() -> Section:
    pairs = dict(line.split(":", 1) for line in _read("/proc/cpuinfo").splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs.items()}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    limit = Cgroups().cpu_limit()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "logical": os.cpu_count(),
        "usable": host.num_cpus(),
        "threads": host.num_cores(),  # that octavo takes
        "limit": f"{limit.cpus:g} by {limit.source}" if limit is not None else "none",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "flags": [flag for flag in flags if _CPU_FLAG.match(flag)],
    }


def _memory() -> Section:
    memory, swap, room = psutil.virtual_memory(), psutil.swap_memory(), Cgroups().memory_room()
    huge = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    limit = "none"
    if room is not None and room.limit < memory.total:  # version 1 has a number that means none
        limit = f"{host.gib(room.limit)} by {room.source}, {host.gib(room.num_bytes)} left"
    return {
        "total": host.gib(memory.total),
        "available": host.gib(memory.available),
        "limit": limit,
        "swap": f"{host.gib(swap.used)} of {host.gib(swap.total)} used",
        "transparent_huge_pages": huge[1] if huge else None,
    }


def _gpu() -> Section:
    """As the driver tells of them."""
    driver = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", _read("/proc/driver/nvidia/version"))
    found: Section = {"driver": driver[1] if driver else "none", "torch_cuda": _torch_cuda(), "devices": []}
    program = shutil.which("nvidia-smi")
    if program is None:
        return found
    command = [program, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return found | {"nvidia_smi": f"failed: {exc}"}
    if run.returncode:
        return found | {"nvidia_smi": f"failed with code {run.returncode}: {(run.stderr or run.stdout).strip()[:300]}"}
    rows = [line.split(", ") for line in run.stdout.splitlines() if line.strip()]
    return found | {"devices": [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]}


def _torch_cuda() -> str | None:
    """The version of CUDA that torch was built for, from its files."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*(\S+)", _read(str(Path(spec.origin).parent / "version.py")), re.MULTILINE)
    return found[1].strip("'\"") if found and found[1] != "None" else None


def _packages() -> Section:
    required: list[str] = []
    for requirement in _requirements():
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and "extra ==" not in requirement:
            required.append(name[0])
    versions = {name: _version(name) for name in (*required, *_OPTIONAL)}
    return {name: version or "is missing" for name, version in versions.items() if version or name in required}


def _requirements() -> list[str]:
    try:
        return metadata.requires("octavo") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return ["torch", "numpy", "tokenizers"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
