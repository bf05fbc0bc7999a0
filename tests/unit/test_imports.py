"""What each process may import, and what that may cost. Each check runs in a fresh interpreter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

#: Modules of the API process and of the scheduler: everything above the worker.
ABOVE_THE_WORKER = [
    "octavo.cli.serve",
    "octavo.launch.server",
    "octavo.launch.supervisor",
    "octavo.launch.api_process",
    "octavo.client.engine_client",
    "octavo.server.app",
    "octavo.text.templates.renderer",
    "octavo.core.engine_core",
    "octavo.core.process",
    "octavo.cli.bench_serve",
    "octavo.bench.serve",
    "octavo.bench.offline",
]
#: They import torch, some of them only when it is installed, and cost seconds.
HEAVY = ["torch", "transformers", "accelerate", "scipy", "gguf", "safetensors.torch"]

# A shared machine's timings are noisy: the budgets below are of CPU time, with this factor on top.
SLACK = 3.0

_PROBE = """
import importlib, json, re, resource, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which begins with the parent's size.
peak = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()) if sys.platform == "linux" else None
peak_kb = int(peak[1]) if peak else 0
print(json.dumps({"modules": sorted(sys.modules), "cpu": used.ru_utime + used.ru_stime, "peak_kb": peak_kb}))
"""


def probe(*names: str) -> dict[str, object]:
    run = subprocess.run([sys.executable, "-c", _PROBE, *names], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


@pytest.mark.parametrize("module", ABOVE_THE_WORKER)
def test_torch_exists_only_at_and_below_the_worker(module: str) -> None:
    modules = probe(module)["modules"]
    assert isinstance(modules, list)
    assert not [name for name in HEAVY if name in modules]


def test_the_client_of_mcp_servers_is_imported_when_one_is_asked() -> None:
    modules = probe("octavo.launch.server", "octavo.server.app", "octavo.server.mcp.session")["modules"]
    assert isinstance(modules, list)
    assert not [m for m in modules if m.split(".")[0] in ("mcp", "mcp_types", "httpx2", "httpcore2", "anyio")]


def test_a_server_of_one_process_does_without_what_several_need() -> None:
    modules = probe("octavo.cli.serve", "octavo.launch.server", "octavo.server.app")["modules"]
    assert isinstance(modules, list)
    several = ("supervisor", "api_process", "api_processes", "shared_place", "shared_http", "offers")
    names = [f"octavo.launch.{name}" for name in several]
    names += ["octavo.wire.api_messages", "octavo.server.responses.shared_store", "octavo.core.clients"]
    assert all(importlib.util.find_spec(name) for name in names)
    assert not [name for name in names if name in modules]


def test_the_engine_is_not_in_the_api_process() -> None:
    modules = probe("octavo.launch.server", "octavo.server.app")["modules"]
    assert isinstance(modules, list)
    assert not [m for m in modules if m.startswith(("octavo.worker", "octavo.models", "octavo.ops", "octavo._cpu"))]


def test_the_benchmark_of_a_server_needs_nothing_of_the_engine() -> None:
    """K7: it runs beside any server, and its own weight is part of what it measures."""
    modules = probe("octavo.cli.bench_serve", "octavo.bench.serve")["modules"]
    assert isinstance(modules, list)
    others = ("numpy", "pydantic", "tokenizers", "octavo._cpu", "octavo.offline", "octavo.server", "octavo.client")
    assert not [m for m in modules if m.startswith(others)]


@pytest.mark.parametrize(
    ("modules", "cpu_seconds", "megabytes", "most_modules"),
    [
        (["octavo.cli.parser", "octavo.cli.serve"], 0.15, 25, 250),
        (["octavo.cli.bench_serve", "octavo.bench.serve"], 0.25, 30, 320),
        (["octavo.launch.server", "octavo.server.app"], 0.5, 90, 1000),
        (["octavo.core.process", "octavo.worker.worker"], 1.6, 350, 2500),
    ],
    ids=["command line", "benchmark of a server", "API process", "engine process"],
)
def test_a_process_keeps_to_its_import_budget(
    modules: list[str], cpu_seconds: float, megabytes: int, most_modules: int
) -> None:
    found = min((probe(*modules) for _ in range(3)), key=lambda p: float(str(p["cpu"])))
    assert len(list(found["modules"])) <= most_modules  # type: ignore[call-overload]
    assert float(str(found["peak_kb"])) / 1024 <= megabytes * 1.25
    assert float(str(found["cpu"])) <= cpu_seconds * SLACK


#: Lets no module of the process import the CPU's native module, as where it was not built; or have it fail to load.
_NOT_BUILT = "import sys; sys.modules['octavo._cpu'] = None\n"
_BROKEN = """
import importlib.machinery, sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "octavo._cpu" else None
    def create_module(self, spec):
        raise ImportError("_cpu.so: undefined symbol: octavo_x")
    def exec_module(self, module): ...
sys.meta_path.insert(0, Broken())
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


_WHAT_A_GPU_NEEDS = """
import importlib, pkgutil
for name in ("octavo.device.cuda", "octavo.ops.triton.bound", "octavo.worker.worker", "octavo.core.process"):
    importlib.import_module(name)
for name in ("octavo.models", "octavo.quant", "octavo.worker", "octavo.ops.triton"):
    for info in pkgutil.iter_modules(importlib.import_module(name).__path__, name + "."):
        importlib.import_module(info.name)
from octavo.quant.gguf_types import transcode
block = bytearray(b"\\x00\\x3c" + b"\\x98" * 16)
assert transcode(memoryview(block), "Q4_0", (1, 32), "w").unpacked().tolist() == [[8] * 16 + [9] * 16]
"""


def test_a_gpu_does_not_need_the_native_module_of_the_cpu() -> None:
    run = run_python(_NOT_BUILT + _WHAT_A_GPU_NEEDS)
    assert run.returncode == 0, run.stderr


_SLOW_CPU = """
from octavo.base.config import ParallelConfig
from octavo.device.cpu import CPUDevice
from octavo.ops.table import bind
print(CPUDevice(ParallelConfig(num_threads=1)).description)
print(*set(bind().implementations.values()))
try:
    CPUDevice(ParallelConfig(isa="avx2"))
except Exception as e:
    print(e)
"""


def test_a_cpu_without_its_native_module_says_that_it_is_slow() -> None:
    run = run_python(_NOT_BUILT + _SLOW_CPU)
    assert run.stdout.splitlines() == [
        "cpu, no native kernels, 1 thread",
        "reference",
        "--isa avx2: octavo's native module was not built, so there are no kernels.",
    ], run.stderr
    assert run.stderr.count("very slow") == 1


@pytest.mark.parametrize(
    "line",
    ["from octavo.ops.table import bind; bind()", "from octavo.device.cpu import *; CPUDevice(ParallelConfig())"],
)
def test_a_native_module_that_cannot_be_loaded_is_an_error(line: str) -> None:
    run = run_python(_BROKEN + line)
    assert run.returncode == 1
    assert "DeviceError: octavo's native module cannot be loaded: _cpu.so: undefined symbol: octavo_x." in run.stderr


def test_help_costs_little() -> None:
    code = (
        "import resource, sys; from octavo.cli import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stderr) for run in runs) <= 0.1 * SLACK


def test_the_public_names_are_there_and_cost_nothing_until_used() -> None:
    bare = probe("octavo")["modules"]
    assert isinstance(bare, list)
    assert [m for m in bare if m.startswith("octavo.")] == []
    import octavo

    for name in octavo.__all__:
        assert getattr(octavo, name) is not None
    assert not hasattr(octavo, "no_such_name")


def test_every_module_can_be_imported_alone() -> None:
    """A circle of imports shows only when the circle is entered at the wrong place."""
    spec = importlib.util.find_spec("octavo")
    assert spec is not None and spec.submodule_search_locations
    code = (
        "import importlib, pkgutil, sys, octavo\n"
        "for info in pkgutil.walk_packages(octavo.__path__, 'octavo.'):\n"
        "    if info.name.endswith('__main__'):\n        continue\n"
        "    for name in [m for m in sys.modules if m.startswith('octavo.') and '_cpu' not in m]:\n"
        "        del sys.modules[name]\n"
        "    importlib.import_module(info.name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
