"""`bench/gpu.sh`: runs the stages one after the other while the budget lasts, and prints one table last.

Each stage is a process of its own in a process group of its own, with a time limit: a crash of the GPU's context ends
one stage. Exit code 1 if a check failed, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from gpu import plan, rows
from gpu.context import Context
from gpu.plan import Stage
from gpu.roofline import Peaks, datasheet
from gpu.rows import Row

BUDGET: Final = 535.0
QUICK_BUDGET: Final = 240.0
#: How long stages take when they are quick, or tiny, as shares of what they usually take.
_QUICK_SCALE: Final = 0.5
_TINY_SCALE: Final = 0.0
_DRY_BUDGET: Final = 3600.0
_GONE_SECONDS: Final = 3.0
_PACKAGES: Final = ("torch", "triton", "transformers", "numpy", "tokenizers")
_QUERY: Final = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


#: What runs a stage; the file of its context follows.
STAGE_COMMAND: Final = (sys.executable, "-m", "gpu.stage")


def main(argv: list[str] | None = None, stage_command: Sequence[str] = STAGE_COMMAND) -> int:
    started = time.time()
    args = _arguments(argv)
    if args.list:
        for stage in plan.STAGES:
            print(f"{stage.name:13} {stage.seconds:4.0f} s  {stage.about}")
        return 0
    try:
        stages = plan.chosen([name for name in args.only.split(",") if name], args.part)
        settings = dict(_setting(text) for text in args.set)
    except (KeyError, ValueError) as error:
        print(f"gpu.sh: no such stage or setting: {error}; --list names the stages", file=sys.stderr)
        return 2
    name, told = ("cpu", "a dry run on the CPU") if args.dry_run else _gpu()
    if name is None:
        print(f"gpu.sh: no NVIDIA GPU: {told}; --dry-run tries the program out without one", file=sys.stderr)
        return 2
    is_quick = args.quick or args.part is not None
    budget = args.budget or (plan.PART_SECONDS if args.part else QUICK_BUDGET if is_quick else BUDGET)
    if args.dry_run and not args.budget:
        budget = _DRY_BUDGET
    print(f"{told}; {', '.join(f'{key} {value}' for key, value in _versions().items())}; {budget:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="octavo-gpu-") as directory:
        device = "cpu" if args.dry_run else "cuda"
        runner = _Runner(Path(directory), stage_command, name, device, is_quick, settings)
        report = _Report(args.json or _default_file(args.part), told, name, settings, is_quick, runner, started)
        _run_all(stages, runner, started + budget, report.save)
        found, table = report.save()
    failed = rows.failed_checks(found)
    print(f"\n{table}\n{len(found)} rows, {len(failed)} failed checks, {time.time() - started:.0f} s", flush=True)
    return 1 if failed else 0


class _Report:
    """What a run leaves behind: FILE with all rows, and beside it the table (.txt) and the rows as they come (.jsonl).
    A run that is killed leaves what it had."""

    def __init__(
        self,
        file: str | None,
        told: str,
        device_name: str,
        settings: dict[str, Any],
        is_quick: bool,
        runner: _Runner,
        started: float,
    ) -> None:
        self._file = None if file is None else Path(file)
        self._told, self._device_name, self._started = told, device_name, started
        self._facts = {"settings": settings, "is_quick": is_quick}
        self._runner = runner
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            rows_file = self._file.with_suffix(".jsonl").absolute()
            rows_file.write_text("")
            runner.rows_file.symlink_to(rows_file)

    def save(self) -> tuple[list[Row], str]:
        """Write what is known; also the rows, and the table of them."""
        found, limits = rows.read(self._runner.rows_file), self._runner.limits()
        table = f"{self._told}{_limits_text(self._device_name, limits)}\n{rows.table(found)}"
        if self._file is not None:
            document = {
                "device": self._told, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "packages": _versions(), "python": platform.python_version(), **self._facts,
                "seconds": round(time.time() - self._started, 1), "sheet": _peaks(datasheet(self._device_name)),
                "here": _peaks(limits), "rows": rows.to_json(found),
            }  # fmt: skip
            self._file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            self._file.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
        return found, table


class _Runner:
    """Runs a stage in its process. All that the stages write is in `directory`."""

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        device_name: str,
        device: str,
        is_quick: bool,
        settings: dict[str, Any],
    ) -> None:
        self._directory = directory
        self._command = command
        self._device_name = device_name
        self._device = device
        self._is_quick = is_quick
        self._settings = settings
        self.rows_file = directory / "rows.jsonl"

    @property
    def scale(self) -> float:
        return _TINY_SCALE if self._device == "cpu" else _QUICK_SCALE if self._is_quick else 1.0

    def limits(self) -> Peaks | None:
        return self._context("limits", 0.0).here

    def _context(self, stage: str, seconds: float) -> Context:
        return Context(
            stage=stage, directory=self._directory, device=self._device, device_name=self._device_name,
            deadline=time.time() + seconds, is_quick=self._is_quick, settings=self._settings,
        )  # fmt: skip

    def run(self, stage: Stage, seconds: float) -> None:
        """At most so many seconds; a failure becomes a row."""
        print(f"== {stage.name}: {stage.about} (at most {seconds:.0f} s)", flush=True)
        context, start = self._context(stage.name, seconds), time.time()
        process = subprocess.Popen([*self._command, str(context.save())], process_group=0)
        try:
            code = process.wait(seconds)
            problem = "" if code in (0, 1) else f"the process ended with {_told(code)}"
        except subprocess.TimeoutExpired:
            problem = f"not done after {seconds:.0f} s"
        finally:
            _end_group(process)
        if problem:
            context.row("ended early", status="failed", note=problem, is_check=stage.is_check)
        elif stage.is_check and not any(row.stage == stage.name for row in rows.read(self.rows_file)):
            context.row("ended early", status="failed", note="it checked nothing", is_check=True)
        print(f"   {stage.name}: {time.time() - start:.1f} s", flush=True)


def _run_all(stages: Sequence[Stage], runner: _Runner, deadline: float, save: Callable[[], object]) -> None:
    for stage in stages:
        left = deadline - time.time()
        seconds = plan.time_limit(stage, left, runner.scale)
        if seconds is None:
            note = f"takes about {runner.scale * stage.seconds:.0f} s, {max(0.0, left):.0f} s are left"
            rows.append(runner.rows_file, Row(stage=stage.name, what=stage.about, status="skipped", note=note))
            continue
        runner.run(stage, seconds)
        save()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The stage and whatever it started. Waits a little until they are gone, and their memory on the GPU with them."""
    end = time.monotonic() + _GONE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    process.wait()


def _told(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _gpu() -> tuple[str | None, str]:
    """The name of the first GPU and a line about it; or None and why there is none."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return None, (done.stderr or done.stdout).strip()[:200]
    name, memory, driver = (part.strip() for part in lines[0].split(",", 2))
    return name, f"{name}, {memory}, driver {driver}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def _peaks(peaks: Peaks | None) -> dict[str, float] | None:
    return None if peaks is None else peaks.to_json()


def _limits_text(name: str, here: Peaks | None) -> str:
    """At the end of the line about the device."""
    text = ""
    for where, peaks in (("sheet", datasheet(name)), ("here", here)):
        if peaks is not None:
            bandwidth, bf16, fp8 = peaks.bandwidth / 1e12, peaks.bf16 / 1e12, peaks.fp8 / 1e12
            text += f"; {where}: {bandwidth:.2f} TB/s, bf16 {bf16:.0f} and fp8 {fp8:.0f} TFLOP/s"
    return text


def _default_file(part: int | None) -> str | None:
    out = os.environ.get("OUT")
    return str(Path(out) / f"gpu{'' if part is None else f'-{part}'}.json") if out else None


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE. The value is a Python literal, or a text. Raises ValueError."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(text)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME,...", help="these stages [all]")
    parser.add_argument(
        "--part", type=int, choices=(1, 2), help=f"one half of the checks and workloads, {plan.PART_SECONDS:.0f} s each"
    )
    parser.add_argument("--list", action="store_true", help="name the stages and their times, and end")
    parser.add_argument("--quick", action="store_true", help=f"smaller loads; a budget of {QUICK_BUDGET:.0f} s")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"what does not fit is skipped [{BUDGET:.0f}]")
    parser.add_argument("--json", metavar="FILE", help="the rows with all their notes, after each stage [in $OUT]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one more setting of octavo.LLM, in all stages"
    )
    parser.add_argument("--dry-run", action="store_true", help="try the program out on the CPU: all tiny, no timings")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
