"""Which adapters the host keeps and which are in slots: order, waiting, and what is in use."""

from __future__ import annotations

from queue import SimpleQueue

import msgspec
import pytest

from core.fake import info
from octavo.base.config import EngineConfig
from octavo.base.errors import CheckpointError
from octavo.base.params import SamplingParams
from octavo.core.adapters import AdapterRead, KeptAdapters
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AdapterInfo, AddRequest
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput


class Files:
    """An executor of which only the adapters are asked for."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.num_reads = 0

    def read_adapter(self, key: str, path: str) -> AdapterInfo:
        self.num_reads += 1
        if path == "damaged":
            raise CheckpointError("damaged: no adapter")
        if path == "a bug":
            raise KeyError(path)
        self.kept.add(key)
        return AdapterInfo(num_virtual_tokens=3 if path == "3 rows" else 0)

    def drop_adapter(self, key: str) -> None:
        self.kept.discard(key)


class Kept:
    """`KeptAdapters` with its inbox, and what it told."""

    def __init__(self, most: int, most_prompts: int = 0) -> None:
        self.files, self.inbox, self.in_use = Files(), SimpleQueue[AdapterRead](), set[str]()
        self.told: list[tuple[int, str | None]] = []
        self.all = KeptAdapters(
            self.files, self.inbox.put, most, lambda: self.in_use, most_prompts  # type: ignore[arg-type]
        )  # fmt: skip

    def wait(self, key: str, number: int, path: str = "", *, is_prompt: bool = False) -> None:
        self.all.wait(key, path, number, lambda error: self.told.append((number, error)), is_prompt=is_prompt)

    def read(self) -> None:
        """Take in what one thread has read."""
        self.all.on_read(self.inbox.get(timeout=20))
        self.all.read_more()


def test_those_who_wait_for_one_adapter_are_told_at_once_and_it_is_read_once() -> None:
    kept = Kept(2)
    kept.wait("a", 1)
    kept.wait("a", 2)
    assert kept.all.num_waiting == 2 and kept.all.is_waiting(2) and not kept.told
    kept.read()
    assert kept.told == [(1, None), (2, None)] and kept.files.num_reads == 1 and kept.all.has("a")


@pytest.mark.parametrize(("path", "message"), [("damaged", "damaged: no adapter"), ("a bug", "a bug: KeyError")])
def test_files_that_cannot_be_read_are_told_and_take_no_place(path: str, message: str) -> None:
    kept = Kept(1)
    kept.wait("a", 1, path)
    kept.wait("b", 2)
    kept.read()
    kept.read()
    (first, error), second = kept.told
    assert first == 1 and error is not None and message in error and second == (2, None)
    assert kept.files.kept == {"b"}


def test_the_one_used_longest_ago_goes_unless_it_is_in_use() -> None:
    kept = Kept(2)
    for number, key in enumerate("ab"):
        kept.wait(key, number)
        kept.read()
    assert kept.all.has("a")  # used again
    kept.wait("c", 3)
    kept.read()
    assert kept.files.kept == {"a", "c"}
    kept.in_use = {"a", "c"}
    kept.wait("d", 4)
    assert kept.files.kept == {"a", "c"} and kept.all.num_waiting == 1
    kept.in_use = {"a"}
    kept.all.read_more()
    kept.read()
    assert kept.files.kept == {"a", "d"} and kept.told[-1] == (4, None)


def test_each_kind_has_places_of_its_own() -> None:
    kept = Kept(1, most_prompts=1)
    for number, key in enumerate("ap"):
        kept.wait(key, number, is_prompt=key == "p")
        kept.read()
    assert kept.files.kept == {"a", "p"}
    kept.in_use = {"a"}
    kept.wait("b", 2)  # waits for a's place, and a prompt adapter does not wait behind it
    kept.wait("q", 3, is_prompt=True)
    kept.read()
    assert kept.files.kept == {"a", "q"} and kept.all.waiting_requests == [2]


def test_an_adapter_that_has_other_rows_than_it_had_is_told() -> None:
    kept = Kept(1, most_prompts=1)
    kept.wait("p", 1, "3 rows", is_prompt=True)
    kept.read()
    params = SamplingParams()
    assert kept.all.change(AddRequest(1, [1], params, adapter="p", num_virtual_tokens=3)) is None
    changed = AddRequest(1, [1], params, adapter="p", adapter_path="/p", num_virtual_tokens=2)
    assert kept.all.change(changed) == "/p: it has 3 virtual tokens, and had 2 when it was loaded"


def test_an_adapter_that_is_retired_goes_when_nobody_uses_it() -> None:
    kept = Kept(2)
    kept.wait("a", 1)
    kept.read()
    kept.in_use = {"a"}
    kept.all.retire("a")
    assert kept.all.has("a")
    kept.in_use = set()
    kept.all.read_more()
    assert not kept.files.kept and not kept.all.has("a")


def test_a_request_that_is_aborted_waits_no_more() -> None:
    kept = Kept(1)
    kept.wait("a", 1)
    assert kept.all.forget([1, 5]) == [1]
    kept.read()
    assert not kept.told and kept.all.has("a")


# ---------------------------------------------------------------- slots
def message(number: int, adapter: str) -> AddRequest:
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    return AddRequest(number, [1, 2, 3], params, adapter=adapter)


def finish(scheduler: Scheduler, plan: SchedulerOutput) -> None:
    result = ModelRunnerOutput({slot: [4] for slot in plan.num_scheduled_tokens})
    scheduler.update(plan, result)


def admitted(plan: SchedulerOutput) -> dict[int, int]:
    return {new.request_id: new.adapter_slot for new in plan.new_requests}


def test_requests_share_the_slot_of_their_adapter_and_wait_for_one() -> None:
    scheduler = Scheduler(EngineConfig(), info(max_loras=2))
    for number, adapter in enumerate(["a", "", "b", "a", "c", "a", ""]):
        assert scheduler.add(message(number, adapter)) is None
    plan = scheduler.schedule()
    # The fifth waits for a place, and nobody overtakes it.
    assert plan.adapters_placed == [(0, "a"), (1, "b")]
    assert admitted(plan) == {0: 0, 1: -1, 2: 1, 3: 0}
    for _ in range(2):
        finish(scheduler, plan)
        plan = scheduler.schedule()
        assert not plan.new_requests and not plan.adapters_placed
    finish(scheduler, plan)
    plan = scheduler.schedule()
    # Both are idle; that of b was used longest ago.
    assert plan.adapters_placed == [(1, "c")] and admitted(plan) == {4: 1, 5: 0, 6: -1}
    while scheduler.has_work:
        finish(scheduler, plan)
        plan = scheduler.schedule()


def test_each_kind_has_slots_of_its_own() -> None:
    scheduler = Scheduler(EngineConfig(), info(max_loras=1, max_prompt_adapters=1))
    for number, (adapter, count) in enumerate([("a", 0), ("p", 1), ("", 0), ("p", 1), ("q", 2), ("a", 0)]):
        added = msgspec.structs.replace(message(number, adapter), num_virtual_tokens=count)
        assert scheduler.add(added) is None
    plan = scheduler.schedule()
    assert plan.adapters_placed == [(0, "a")] and plan.prompts_placed == [(0, "p")]
    slots = {new.request_id: (new.adapter_slot, new.prompt_slot, new.num_virtual_tokens) for new in plan.new_requests}
    assert slots == {0: (0, -1, 0), 1: (-1, 0, 1), 2: (-1, -1, 0), 3: (-1, 0, 1)}
    assert {new.request_id: new.num_prompt_tokens for new in plan.new_requests} == {0: 3, 1: 4, 2: 3, 3: 4}
    scheduler.fail_step(plan, "out of memory")
    plan = scheduler.schedule()
    assert plan.prompts_placed == [(0, "q")] and plan.adapters_placed == [(0, "a")]


def test_an_adapter_of_a_step_that_failed_is_placed_again() -> None:
    scheduler = Scheduler(EngineConfig(), info(max_loras=1))
    scheduler.add(message(1, "a"))
    plan = scheduler.schedule()
    assert plan.adapters_placed == [(0, "a")]
    scheduler.fail_step(plan, "out of memory")
    scheduler.add(message(2, "a"))
    plan = scheduler.schedule()
    assert plan.adapters_placed == [(0, "a")] and admitted(plan) == {2: 0}


def test_slots_are_empty_after_sleep() -> None:
    scheduler = Scheduler(EngineConfig(), info(max_loras=1))
    scheduler.add(message(1, "a"))
    while scheduler.has_work:
        finish(scheduler, scheduler.schedule())
    scheduler.forget_worker()
    scheduler.add(message(2, "a"))
    assert scheduler.schedule().adapters_placed == [(0, "a")]
