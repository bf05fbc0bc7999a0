"""What the engine did step by step, as a trace of Chrome's form, which Perfetto (ui.perfetto.dev) opens.

A slice a step, from its plan to its answer, with the plan's numbers; within it planning, computing and taking in the
answer; a line for each request from its arrival to its end, with its time in the queue, its prompt and its reply; and
counters of what runs, waits and is in the cache. It costs microseconds a step, so that it may run beside real load.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from octavo.core.request import Request
from octavo.wire.messages import SchedulerStats
from octavo.wire.step import SchedulerOutput

#: Events after which nothing more is recorded: some minutes of a busy engine, and about 100 MB of memory.
MAX_EVENTS = 400_000

#: Threads of the trace. A step may be planned before the one before it has ended, and then has a line of its own; their
#: parts follow one another.
_STEPS, _STEPS_AHEAD, _PARTS = 1, 2, 3
_THREAD_NAMES = {_STEPS: "steps", _STEPS_AHEAD: "steps planned ahead", _PARTS: "parts of steps"}


class StepMoments(NamedTuple):
    """When a step went on, as time.monotonic() seconds, in this order."""

    began: float
    planned: float
    launched: float
    waited: float  # for its answer, from here on
    answered: float
    taken: float


class StepTrace:
    """Records from its making until `write`. Times are time.monotonic() seconds; all calls come from one thread."""

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._start = time.monotonic()
        self._wall = time.time()
        self._events: list[dict[str, Any]] = []
        self._max_events = max_events
        self._open: dict[int, tuple[Request, str]] = {}  # whose line has begun, and the part of it that they are in
        self._last_end = 0.0  # of the steps on their first line
        self.num_steps = 0
        self.num_dropped = 0  # steps after the trace was full

    def on_step(
        self,
        plan: SchedulerOutput,
        members: Iterable[Request],
        stats: SchedulerStats,
        times: StepMoments,
    ) -> None:
        """A step was answered; `members` took part in it."""
        if len(self._events) >= self._max_events:
            self.num_dropped += 1
            return
        self.num_steps += 1
        began, taken = times.began, times.taken
        decodes = sum(count == 1 for count in plan.num_scheduled_tokens.values())
        numbers = {
            "step": plan.step_id,
            "tokens": plan.total_num_scheduled_tokens,
            "requests": len(plan.num_scheduled_tokens),
            "requests_of_one_token": decodes,
            "tokens_of_prompts_and_jumps": plan.total_num_scheduled_tokens - decodes,
            "new_requests": len(plan.new_requests),
            "freed_slots": len(plan.finished_slots),
            "masked_rows": len(plan.masked_slots),
            "draft_tokens": sum(len(known.draft_token_ids) for known in plan.cached_requests),
            "swapped_out": len(plan.swap_out),
            "swapped_in": len(plan.swap_in),
            "running": stats.num_running,
            "waiting": stats.num_waiting,
        }
        kind = "decode" if decodes == len(plan.num_scheduled_tokens) else "prefill" if not decodes else "mixed"
        thread = _STEPS if began >= self._last_end else _STEPS_AHEAD
        if thread == _STEPS:
            self._last_end = taken
        self._slice(thread, f"{kind} {plan.total_num_scheduled_tokens}", began, taken, numbers)
        self._slice(_PARTS, "plan", began, times.planned)
        self._slice(_PARTS, "launch", times.planned, times.launched)
        self._slice(_PARTS, "collect", times.waited, times.answered)
        self._slice(_PARTS, "take in", times.answered, taken)
        self._counters(taken, stats)
        for request in members:
            self._follow(request, began, taken)
        for request, _ in list(self._open.values()):
            if request.finished:  # by its tokens, or aborted since the last step
                self._close(request, taken)

    def write(self, path: Path) -> None:
        """Write the trace, compressed when `path` ends in .gz. Raises OSError."""
        now = time.monotonic()
        for request, _ in list(self._open.values()):
            self._close(request, now)
        about = {
            "recorded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall)),
            "steps": self.num_steps,
            "steps_not_recorded": self.num_dropped,
        }
        names = [
            {"ph": "M", "name": "process_name", "pid": os.getpid(), "args": {"name": "octavo engine"}},
            *(
                {"ph": "M", "name": "thread_name", "pid": os.getpid(), "tid": thread, "args": {"name": name}}
                for thread, name in _THREAD_NAMES.items()
            ),
        ]
        text = json.dumps({"traceEvents": names + self._events, "displayTimeUnit": "ms", "otherData": about})
        data = text.encode()
        path.write_bytes(gzip.compress(data, 5) if path.suffix == ".gz" else data)

    # ------------------------------------------------------------ requests
    def _follow(self, request: Request, began: float, taken: float) -> None:
        """The line of a request that took part in a step: `queue`, then `prefill`, then `decode`."""
        key = request.request_id
        _, part = self._open.get(key, (request, ""))
        if not part:
            arrival = max(request.order[1], self._start)
            about = {
                "prompt_tokens": request.num_prompt_tokens,
                "cached_tokens": request.num_cached_tokens,
                "sample": request.sample_index,
                "has_grammar": request.matcher is not None,
            }
            self._async("b", key, f"request {key}", arrival, about)
            self._async("b", key, "queue", arrival)
            self._async("e", key, "queue", max(began, arrival))
            self._async("b", key, "prefill", max(began, arrival))
            part = "prefill"
            self._open[key] = (request, part)
        if part == "prefill" and request.num_output_tokens:
            self._async("e", key, "prefill", taken)
            self._async("b", key, "decode", taken)
            self._open[key] = (request, "decode")

    def _close(self, request: Request, now: float) -> None:
        key = request.request_id
        _, part = self._open.pop(key)
        self._async("e", key, part, now)
        self._async("e", key, f"request {key}", now, {"output_tokens": request.num_output_tokens})

    # ------------------------------------------------------------ events
    def _micros(self, moment: float) -> float:
        return round((moment - self._start) * 1e6, 1)

    def _slice(self, thread: int, name: str, start: float, end: float, args: dict[str, Any] | None = None) -> None:
        event = {"ph": "X", "name": name, "cat": "step", "pid": os.getpid(), "tid": thread}
        event |= {"ts": self._micros(start), "dur": round((end - start) * 1e6, 1)}
        self._events.append(event | ({"args": args} if args else {}))

    def _async(self, phase: str, key: int, name: str, moment: float, args: dict[str, Any] | None = None) -> None:
        event = {"ph": phase, "name": name, "cat": "request", "id": key, "pid": os.getpid(), "tid": _STEPS}
        self._events.append(event | {"ts": self._micros(moment)} | ({"args": args} if args else {}))

    def _counters(self, moment: float, stats: SchedulerStats) -> None:
        for name, values in (
            ("requests", {"running": stats.num_running, "waiting": stats.num_waiting}),
            ("KV blocks", {"used": stats.kv_blocks_used}),
        ):
            event = {"ph": "C", "name": name, "pid": os.getpid(), "ts": self._micros(moment), "args": values}
            self._events.append(event)
