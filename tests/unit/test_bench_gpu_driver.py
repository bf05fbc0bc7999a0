"""The driver of bench/gpu: budget, crashes and time limits become rows; the exit code is about checks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True, scope="module")
def _path() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


#: Stands for `gpu.stage` in the child: what each stage does.
FAKE_STAGE = """
import json, os, sys, time
from pathlib import Path
from gpu.context import Context
context = Context.read(Path(sys.argv[1]))
what = json.loads(os.environ["FAKE_STAGES"]).get(context.stage, "row")
if what == "row":
    context.row("done", 1.0, "s")
elif what == "crash":
    context.row("before the crash", 1.0, "s")
    os.kill(os.getpid(), 11)
elif what == "hang":
    context.row("pid", os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "300"))
    time.sleep(300)
elif what == "bad check":
    context.check("equal", False, "it is not")
elif what == "good check":
    context.check("equal", True)
"""


@dataclass
class Ran:
    code: int
    rows: list[dict[str, Any]]
    output: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the driver with fake stages: name -> what it does."""
    from gpu import main

    script, file = tmp_path / "stage.py", tmp_path / "rows.json"
    script.write_text(FAKE_STAGE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(BENCH), os.environ["PYTHONPATH"])))

    def run(stages: dict[str, str], *args: str) -> Ran:
        monkeypatch.setenv("FAKE_STAGES", json.dumps(stages))
        options = ["--dry-run", "--json", str(file), "--only", ",".join(stages), *args]
        code = main.main(options, [sys.executable, str(script)])
        rows = json.loads(file.read_text())["rows"] if file.exists() else []
        captured = capfd.readouterr()
        return Ran(code, rows, captured.out + captured.err)

    return run


def test_a_crash_is_a_row_and_the_rest_goes_on(run: Callable[..., Ran]) -> None:
    ran = run({"limits": "crash", "small": "row"})
    assert ran.code == 0
    assert [(row["stage"], row["what"], row["status"]) for row in ran.rows] == [
        ("limits", "before the crash", "ok"), ("limits", "ended early", "failed"), ("small", "done", "ok"),
    ]  # fmt: skip
    assert "SIGSEGV" in ran.rows[1]["note"]
    assert ran.output.rindex("before the crash") < ran.output.rindex("ended early") < ran.output.rindex("small")


def test_a_stage_that_hangs_is_ended_with_what_it_started(run: Callable[..., Ran]) -> None:
    start = time.monotonic()
    ran = run({"limits": "hang", "small": "row"}, "--budget", "11")
    assert ran.code == 0
    assert time.monotonic() - start < 30
    child, ended, after = ran.rows
    assert (ended["status"], ended["what"]) == ("failed", "ended early")
    assert "not done after" in ended["note"]
    assert (after["stage"], after["status"]) in {("small", "ok"), ("small", "skipped")}
    status = Path(f"/proc/{child['figure']}/status")
    assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.parametrize(
    ("what", "code", "status"),
    [("good check", 0, "ok"), ("bad check", 1, "failed"), ("crash", 1, "failed"), ("nothing", 1, "failed")],
)
def test_the_exit_code_is_about_checks(run: Callable[..., Ran], what: str, code: int, status: str) -> None:
    ran = run({"check-ops": what})
    assert ran.code == code
    assert ran.rows[-1]["status"] == status
    assert f"{int(code)} failed checks" in ran.output


def test_what_does_not_fit_the_budget_is_told(run: Callable[..., Ran]) -> None:
    ran = run({"small": "row", "limits": "row"}, "--budget", "4")
    assert ran.code == 0
    assert [row["status"] for row in ran.rows] == ["skipped", "skipped"]
    assert "are left" in ran.rows[0]["note"]


def test_an_unknown_stage_is_refused(run: Callable[..., Ran]) -> None:
    ran = run({"limits": "row"}, "--only", "limit")
    assert (ran.code, ran.rows) == (2, [])
    assert "limit" in ran.output


# ---------------------------------------------------------------- the parts
def test_stages_run_in_order_of_worth_while_there_is_time() -> None:
    from gpu import plan

    assert [stage.name for stage in plan.chosen(["small", "limits"])] == ["limits", "small"]
    stage = plan.Stage(name="x", about="", seconds=40)
    assert plan.time_limit(stage, 44.0) is None
    assert plan.time_limit(stage, 50.0) == 45.0
    assert plan.time_limit(stage, 1000.0) == 100.0
    assert plan.time_limit(stage, 30.0, scale=0.5) == 25.0
    assert plan.time_limit(stage, 1000.0, scale=0.0) == 995.0


def test_two_parts_check_all_and_measure_each_workload_in_their_time() -> None:
    from gpu import main, plan

    parts = [plan.chosen([], part) for part in (1, 2)]
    assert all(stage.is_check <= (1 in stage.parts) for stage in plan.STAGES)
    told = " ".join(stage.about for stages in parts for stage in stages)
    assert all(f"W{number}" in told for number in range(1, 10))
    for stages in parts:
        assert stages[0].name == "limits"  # goals are shares of what the card gives in that minute
        seconds = sum(stage.seconds if stage.is_check else main._QUICK_SCALE * stage.seconds for stage in stages)
        assert seconds + plan.RESERVE < plan.PART_SECONDS <= 270


def test_the_default_budget_is_for_all_that_is_worth_most() -> None:
    """A whole run takes nine minutes; checks and the goals' own workloads come before the budget is used up."""
    from gpu import main, plan

    total, fitting = 0.0, []
    for stage in plan.STAGES:
        if total + stage.seconds + plan.RESERVE <= main.BUDGET:
            total += stage.seconds
            fitting.append(stage.name)
    assert main.BUDGET <= 540
    assert {"check-ops", "check-models", "small", "llama", "qwen", "idle", "start", "invariant", "fp8-kv"} <= {*fitting}


def test_every_stage_has_a_function() -> None:
    from gpu import plan, stage

    assert set(stage.RUNS) == {one.name for one in plan.STAGES}
    for module, function in stage.RUNS.values():
        assert f"def {function}(context: Context)" in (BENCH / "gpu" / f"{module}.py").read_text()


def test_a_goal_is_met_by_what_it_is_about() -> None:
    from gpu.rows import Row

    assert Row(stage="", what="", figure=9.0, goal=10.0, less=True).is_met
    assert not Row(stage="", what="", figure=11.0, goal=10.0, less=True).is_met
    assert Row(stage="", what="", figure=1.0, sheet=0.71, goal=0.7, against="sheet").is_met
    assert Row(stage="", what="", figure=1.0, goal=0.7, against="sheet").is_met is None
    assert Row(stage="", what="", figure=1.0).is_met is None


def test_rows_survive_a_line_that_was_cut(tmp_path: Path) -> None:
    from gpu import rows

    file = tmp_path / "rows.jsonl"
    rows.append(file, rows.Row(stage="a", what="b", figure=2.0))
    with file.open("a") as out:
        out.write('{"stage": "a", "wh')
    assert rows.read(file) == [rows.Row(stage="a", what="b", figure=2.0)]
    assert rows.figure_of(rows.read(file), "a", "b") == 2.0
    assert rows.read(tmp_path / "none") == []


def test_the_table_tells_figures_shares_and_goals() -> None:
    from gpu.rows import Row, table

    found = [
        Row(stage="small", what="W1", figure=18_123.4, unit="tok/s", sheet=0.65, here=0.721, goal=0.7, against="sheet"),
        Row(stage="small", what="W9", status="skipped", note="no time\nat all"),
        Row(stage="check-ops", what="norm", is_check=True),
    ]
    _, second, third, first = table(found).splitlines()  # what has a goal comes last
    assert first.split() == ["small", "W1", "18,123", "tok/s", "65.0%", "72.1%", ">=", "70%", "sheet", "missed"]
    assert "skipped" in second
    assert second.endswith("no time at all")
    assert third.split() == ["check-ops", "norm", "ok"]


def test_idle_is_what_no_event_covers() -> None:
    from gpu.timeline import busy_intervals, idle, part

    def event(start: float, length: float, kind: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": kind, "ts": start, "dur": length, "name": ""}

    trace = {
        "traceEvents": [
            event(0, 10), event(5, 10), event(16, 4), event(30, 10, "gpu_memcpy"), event(0, 90, "cpu_op"),
            {"ph": "i", "ts": 3},
        ]
    }  # fmt: skip
    found = idle(busy_intervals(trace))
    assert found is not None
    assert (found.all_gaps, found.long_gaps) == pytest.approx((11 / 40, 10 / 40))
    assert found.num_gaps == 1
    assert part(busy_intervals(trace), 0.1, 0.6) == [(5, 15), (16, 20)]
    assert idle(part([], 0.1, 0.9)) is None


def test_a_run_that_is_killed_leaves_the_rows_and_the_table_of_what_it_had(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu import main

    seen: list[tuple[int, str]] = []
    plain = main._Runner.run

    def noted(self: Any, stage: Any, seconds: float) -> None:
        file = tmp_path / "rows.jsonl"
        seen.append((len(file.read_text().splitlines()), (tmp_path / "rows.txt").read_text() if seen else ""))
        plain(self, stage, seconds)

    monkeypatch.setattr(main._Runner, "run", noted)
    run(dict.fromkeys(("limits", "small", "llama", "qwen"), "row"))
    assert [count for count, _ in seen] == [0, 1, 2, 3]
    assert "llama" in seen[3][1] and "qwen" not in seen[3][1]
