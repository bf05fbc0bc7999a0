"""Every operation against the reference: at real models' sizes, and in all cases of tests/triton.

Both in processes of their own: an access to memory that is not there ends all that a process does on the GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gpu.context import Context
from gpu.op_checks import CHECKS

ROOT: Final = Path(__file__).parents[2]
#: A GPU has no part in the first; the next two compare with native kernels of the CPU, which need not be built there;
#: the last counts what the interpreter launches.
_LEFT_OUT: Final = ("test_compile.py", "test_engine.py", "test_models.py", "test_joined_models.py")
_WORKERS: Final = 12
_TOLD: Final = 4


def run(context: Context) -> None:
    if context.is_quick:
        _side_by_side(context)
        return
    checks = subprocess.Popen([sys.executable, "-m", "gpu.stage_check_ops", str(context.save())])
    try:
        _tests(context)
    finally:
        try:
            code = checks.wait(max(1.0, context.left()))
            if code:
                context.check("at real sizes", False, f"the process ended with {code}")
        finally:
            checks.kill()
            checks.wait()


# ---------------------------------------------------------------- at real models' sizes
def _side_by_side(context: Context) -> None:
    """A process for each group of operations, so that kernels compile on all cores, and without pytest."""
    context.row("tests/triton", status="skipped", note="the whole run has them")
    file, threads = str(context.save()), max(1, (os.cpu_count() or 1) // len(CHECKS))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = (sys.executable, "-m", "gpu.stage_check_ops", file)
    running = [subprocess.Popen([*command, str(i)], env=environment) for i in range(len(CHECKS))]
    try:
        for (name, _), process in zip(CHECKS, running, strict=True):
            try:
                if code := process.wait(max(0.1, context.left() - 2)):
                    context.check(f"real sizes: {name}", False, f"the process ended with {code}")
            except subprocess.TimeoutExpired:
                context.check(f"real sizes: {name}", False, "not done in time")
    finally:
        for process in running:
            process.kill()
            process.wait()


def real_sizes(context: Context, checks: Sequence[tuple[str, Any]] = CHECKS) -> None:
    for name, check in checks:
        try:
            count = 0
            for result in check(context):
                count += 1
                if not result.is_good:
                    note = f"more than {result.bound:g}; {result.note}"
                    context.check(result.what, False, note, result.error)
            context.check(f"real sizes: {name}", count > 0, f"{count} cases")
        except Exception as error:  # noqa: BLE001  # becomes a row
            context.check(f"real sizes: {name}", False, f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------- the tests
def _tests(context: Context) -> None:
    files = [file for file in sorted((ROOT / "tests/triton").glob("test_*.py")) if file.name not in _LEFT_OUT]
    if context.is_tiny:
        files = files[:1]  # in the interpreter, to try out the way there
    if importlib.util.find_spec("pytest") is None:
        context.row("tests/triton", status="skipped", note="pytest is not installed")
        return
    if not files:
        context.check("tests/triton", False, "there are no tests")
        return
    report = context.directory / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={ROOT}", "-p", "no:cacheprovider"]
    command += ["--confcutdir", str(ROOT / "tests/triton"), "--import-mode=importlib"]
    command += ["-p", "gpu.pytest_cuda", f"--junitxml={report}", "--tb=short", "-m", "not slow"]
    if importlib.util.find_spec("xdist") is not None and not context.is_tiny:
        command += ["-n", str(min(_WORKERS, os.cpu_count() or 1))]
    path = os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"OCTAVO_TEST_TORCH_DEVICE": context.device, "PYTHONPATH": path}
    if context.is_tiny:
        environment["TRITON_INTERPRET"] = "1"
    try:
        done = subprocess.run(
            [*command, *map(str, files)], cwd=ROOT, env=environment, timeout=max(5, context.left() - 3)
        )
        code = done.returncode
    except subprocess.TimeoutExpired:
        code = -1
    if not report.exists():
        ended = "not done in time" if code == -1 else f"pytest ended with {code} and no report"
        context.check("tests/triton", False, ended)
        return
    _tell(context, report)


def _tell(context: Context, report: Path) -> None:
    """One row a file."""
    passed: dict[str, int] = defaultdict(int)
    failed: dict[str, list[str]] = defaultdict(list)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2] or case.get("name", "")
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            failed[name].append(f"{case.get('name')}: {_line(problem.get('message') or problem.text or '')}")
        elif case.find("skipped") is None:
            passed[name] += 1
    for name in sorted({*passed, *failed}):
        problems = failed[name]
        note = f"{passed[name]} passed, {len(problems)} failed"
        context.check(f"tests: {name}", not problems, "; ".join([note, *problems[:_TOLD]]))
    if not passed and not failed:
        context.check("tests/triton", False, "no test ran")


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:200]


if __name__ == "__main__":
    chosen = CHECKS if len(sys.argv) < 3 else [CHECKS[int(sys.argv[2])]]
    real_sizes(Context.read(Path(sys.argv[1])), chosen)
