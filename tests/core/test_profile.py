"""What can be seen of the engine from outside: profiles of its steps, times of requests' steps, totals."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.test_engine_core import Engine
from octavo.base.config import EngineConfig, StepTimes
from octavo.wire.messages import Abort, EngineCoreOutputs

Start = Callable[..., Engine]


@pytest.fixture
def start() -> Iterator[Start]:
    engines: list[Engine] = []

    def start(config: EngineConfig | None = None, **changes: object) -> Engine:
        engines.append(Engine(config, **changes).start())
        return engines[-1]

    yield start
    for engine in engines:
        engine.shut_down()
        engine.client.close()
        assert engine.failure is None


def test_e98_a_profile_has_every_step_with_its_numbers_and_every_request(start: Start, tmp_path: Path) -> None:
    engine = start()
    engine.add(1, [1, 2, 3], max_tokens=2)
    engine.wait_for_end(1)
    assert engine.call("stop_profile").error == "RuntimeError: no profile is being recorded"
    assert engine.call("start_profile", str(tmp_path / "new"), False).error is None
    assert "already" in (engine.call("start_profile", str(tmp_path), False).error or "")
    engine.add(2, [1, 2, 3, 4, 5], max_tokens=3)
    engine.wait_for_end(2)
    recorded = engine.call("stop_profile").result
    assert recorded["steps"] == 3 and recorded["steps_not_recorded"] == 0
    [file] = recorded["files"]
    trace = json.loads(gzip.decompress(Path(file).read_bytes()))
    steps = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == 1]
    assert [event["name"] for event in steps] == ["prefill 5", "decode 1", "decode 1"]
    assert [event["args"]["tokens"] for event in steps] == [5, 1, 1] and steps[0]["args"]["new_requests"] == 1
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in itertools.pairwise(steps))
    parts = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == 3]
    assert [event["name"] for event in parts] == ["plan", "launch", "collect", "take in"] * 3
    lines = [event for event in trace["traceEvents"] if event["ph"] in "be"]
    assert {event["id"] for event in lines} == {2}
    names = ["request 2", "queue", "prefill", "decode"]
    for name in names:
        begin, end = (next(e["ts"] for e in lines if (e["ph"], e["name"]) == (phase, name)) for phase in "be")
        assert begin <= end
    assert sorted(event["name"] for event in lines) == sorted(names * 2)
    assert [e["args"]["output_tokens"] for e in lines if e["ph"] == "e" and "args" in e] == [3]


def test_steps_that_are_planned_ahead_do_not_overlap_on_a_line(start: Start, tmp_path: Path) -> None:
    engine = start(plans_ahead=True)
    engine.call("start_profile", str(tmp_path), False)
    engine.add(1, [1, 2, 3], max_tokens=9)
    engine.add(2, [4, 5], max_tokens=9)
    engine.wait_for_end(1, 2)
    [file] = engine.call("stop_profile").result["files"]
    events = json.loads(gzip.decompress(Path(file).read_bytes()))["traceEvents"]
    for thread in (1, 2, 3):
        slices = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == thread)
        assert len(slices) > 1
        assert all(first[1] <= second[0] + 0.5 for first, second in itertools.pairwise(slices))


def test_a_profile_ends_the_lines_of_requests_that_were_aborted_and_has_a_most(start: Start, tmp_path: Path) -> None:
    engine = start()
    engine.call("start_profile", str(tmp_path), True)
    assert engine.core._profile is not None
    engine.core._profile.trace._max_events = 40
    engine.add(1, [1, 2, 3], max_tokens=50)
    engine.receive(EngineCoreOutputs)
    engine.client.send(Abort([1]))
    engine.wait_for_end(1)
    engine.add(2, [1, 2, 3], max_tokens=20)
    engine.wait_for_end(2)
    recorded = engine.call("stop_profile").result
    assert recorded["steps_not_recorded"] > 0 and len(recorded["files"]) == 2
    trace = json.loads(gzip.decompress(Path(recorded["files"][0]).read_bytes()))
    ends = [(event["id"], event["ph"]) for event in trace["traceEvents"] if event["ph"] in "be"]
    assert all(ends.count((i, "b")) == ends.count((i, "e")) for i, _ in ends)


def test_a_folder_that_cannot_be_made_is_an_error_and_nothing_is_recorded(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    engine = start()
    assert "NotADirectoryError" in (engine.call("start_profile", str(tmp_path / "file" / "a"), False).error or "")
    assert "no profile" in (engine.call("stop_profile").error or "")


@pytest.mark.parametrize("asked", [[], ["all"]])
def test_steps_are_timed_for_their_requests_only_when_asked_for(start: Start, asked: list[Any]) -> None:
    engine = start(EngineConfig(step_times=StepTimes(collect_detailed_traces=asked)))
    engine.add(1, [1, 2, 3], max_tokens=3)
    engine.wait_for_end(1)
    spent = [output.step_seconds for output in engine.outputs[1]]
    if not asked:
        assert spent == [None] * 3
    else:
        times = [one.scheduler for one in spent if one is not None]
        assert len(times) == 3 and 0.0 < times[0] < times[1] < times[2]


def test_e96_a_prompt_that_was_counted_with_another_request_is_not_counted_again(start: Start) -> None:
    engine = start()
    engine.add(1, [1, 2, 3], max_tokens=1)
    engine.wait_for_end(1)
    engine.add(2, [1, 2, 3, 9], max_tokens=1, is_counted=False)
    engine.wait_for_end(2)
    stats = engine.call("stats").result
    assert (stats["num_prompt_tokens"], stats["prefix_cache_queries"], stats["prefix_cache_hits"]) == (3, 3, 0)
