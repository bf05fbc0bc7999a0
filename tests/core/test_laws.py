"""The laws of pool and scheduler under arbitrary sequences of events, with a model that sees every mistake."""

from __future__ import annotations

from collections import Counter, deque
from itertools import takewhile

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from core import invariants
from core.fake import VOCAB_SIZE, FakeExecutor, Guesser, Jumper, dictated_after, info, next_token, scores_of
from octavo.base.config import CacheConfig, EngineConfig, SchedulerConfig
from octavo.base.params import SamplingParams
from octavo.core.blocks import kv_cache_manager
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest, EngineCoreOutput, TokenLogprobs
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput

CONTEXT = 40
#: What must have happened at least once, or the laws have been tested in a world where nothing happens.
seen: Counter[str] = Counter()


def expected_end(
    message: AddRequest, sampling_seed: int, limit: int, *, jumps: bool
) -> tuple[list[int], str, int | None]:
    """(tokens, finish_reason, stop_reason) of a request that runs alone, straight from the definition."""
    params, output = message.params, []
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else message.eos_token_ids)}
    dictated: list[int] = []
    while True:
        is_sampled = not dictated
        token = dictated.pop(0) if dictated else next_token([*message.prompt_token_ids, *output], sampling_seed)
        output.append(token)
        if len(output) > params.min_tokens:
            if token in message.eos_token_ids and not params.ignore_eos:
                return output, "stop", None
            if token in params.stop_token_ids:
                return output, "stop", token
        if len(message.prompt_token_ids) + len(output) >= limit or len(output) == params.max_tokens:
            return output, "length", None
        if jumps and is_sampled:  # G26
            dictated = list(takewhile(lambda token: token not in stops, dictated_after(token)))


class Laws(RuleBasedStateMachine):
    ids = Bundle("ids")

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.sampled_from([2, 3, 6, 12, 24, 48]),
        max_num_seqs=st.integers(1, 5),
        budget=st.sampled_from([1, 3, 8, 64]),
        prefill=st.sampled_from([1, 2, 64]),
        chunked=st.booleans(),
        caching=st.sampled_from([True, True, False]),
        ahead=st.booleans(),
        num_swap_blocks=st.sampled_from([0, 4, 100]),
        caches_output=st.booleans(),
        drafts=st.booleans(),
        windows=st.sampled_from([(0,), (0,), (0, 3), (0, 4, 4), (5,), (2, 6), ()]),
    )
    def start(
        self,
        block_size: int,
        num_blocks: int,
        max_num_seqs: int,
        budget: int,
        prefill: int,
        chunked: bool,
        caching: bool,
        ahead: bool,
        num_swap_blocks: int,
        caches_output: bool,
        drafts: bool,
        windows: tuple[int, ...],
    ) -> None:
        engine_info = info(
            max_model_len=CONTEXT, num_kv_blocks=num_blocks, block_size=block_size, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget if chunked else CONTEXT,
            max_num_prefill_tokens=min(prefill, budget) if chunked else CONTEXT,
            num_swap_blocks=num_swap_blocks if windows else 0, caches_output=caches_output, kv_group_windows=windows,
            has_states=not windows,
        )  # fmt: skip
        config = EngineConfig(
            cache=CacheConfig(enable_prefix_caching=caching), scheduler=SchedulerConfig(enable_chunked_prefill=chunked)
        )
        self.drafter = Guesser() if drafts else None
        self.scheduler = Scheduler(config, engine_info, self.drafter)
        self.executor = FakeExecutor(engine_info)
        self.ahead = ahead
        self.in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self.limit = min(CONTEXT, self.scheduler.kv.capacity_tokens)
        self.messages: dict[int, AddRequest] = {}
        self.seeds: dict[int, int] = {}
        self.guided: dict[int, bool] = {}
        self.tokens: dict[int, list[int]] = {}
        self.scores: dict[int, list[TokenLogprobs]] = {}
        self.ends: dict[int, EngineCoreOutput] = {}

    @rule(
        target=ids,
        shared=st.integers(0, 24),
        tail=st.lists(st.integers(0, 3), max_size=8),
        max_tokens=st.none() | st.integers(1, 24),
        min_tokens=st.integers(0, 4),
        stop_token_ids=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=2),
        eos=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        ignore_eos=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        salt=st.sampled_from(["", "", "a"]),
        n=st.sampled_from([1, 1, 2, 4]),
        scored=st.booleans(),
        guided=st.booleans(),
    )
    def add(
        self, shared: int, tail: list[int], max_tokens: int | None, min_tokens: int, stop_token_ids: set[int],
        eos: set[int], ignore_eos: bool, priority: int, salt: str, n: int, scored: bool, guided: bool,
    ) -> int:  # fmt: skip
        params = SamplingParams(
            max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens or 4), ignore_eos=ignore_eos,
            stop_token_ids=tuple(stop_token_ids), prompt_logprobs=0 if scored else None,
        )  # fmt: skip
        first = len(self.messages)
        for i in range(n):
            message = AddRequest(first + i, [7] * shared + tail, params, tuple(eos), i, priority, salt)
            self.messages[message.request_id] = message
            self.tokens[message.request_id] = []
            self.scores[message.request_id] = []
            refused = self.scheduler.add(message, Jumper() if guided else None)
            self.guided[message.request_id] = guided
            # I3: exactly those that could never run are refused.
            size = shared + len(tail)
            assert (refused is not None) == (size == 0 or size + (max_tokens or 1) > self.limit)
            if refused is not None:
                assert refused.finish_reason == "error" and refused.error
                self.take([refused])
            else:
                self.seeds[message.request_id] = self.scheduler.requests[message.request_id].sampling_seed
        assert n == 1 or len({self.seeds.get(first + i, i) for i in range(n)}) == n
        return first

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()
            invariants.check_all(self.scheduler, self.executor)

    @rule(request_id=ids)
    def abort(self, request_id: int) -> None:
        known = request_id in self.scheduler.requests
        outputs = self.scheduler.abort([request_id, request_id])  # I7: twice is once
        assert [output.finish_reason for output in outputs] == ["abort"] * known
        self.take(outputs)

    @rule(request_id=st.integers(-3, -1) | st.integers(10**6, 2**63))
    def abort_unknown(self, request_id: int) -> None:
        assert self.scheduler.abort([request_id]) == []

    @rule(request_id=ids)
    def abort_in_the_middle_of_a_step(self, request_id: int) -> None:
        self.step(lambda: self.take(self.scheduler.abort([request_id])))
        seen["abort in a step"] += 1

    @rule(request_id=ids)
    def worker_fails_one_request(self, request_id: int) -> None:
        if request_id in self.scheduler.requests:
            self.executor.errors = {request_id: "NaN"}
            self.step()
            seen["error of one"] += self.ends[request_id].error == "NaN" if request_id in self.ends else 0
            self.executor.errors = {}

    @rule()
    def step_runs_out_of_memory(self) -> None:
        is_ahead = bool(self.in_flight)
        if is_ahead and not self.scheduler.can_plan_ahead:
            return
        plan = self.scheduler.schedule()
        invariants.check_plan(self.scheduler, plan, ahead=is_ahead)
        if not plan.total_num_scheduled_tokens:
            return
        ids = {self.scheduler.slots[slot].request_id for slot in plan.num_scheduled_tokens}  # type: ignore[union-attr]
        outputs = self.scheduler.fail_step(plan, "memory")
        assert {output.request_id for output in outputs} == ids
        assert all(output.new_token_ids == [] for output in outputs)  # I13
        self.take(outputs)
        seen["failed step of a part of a prompt"] += 1 if ids else 0

    @rule()
    def reset_prefix_cache(self) -> None:
        self.scheduler.reset_prefix_cache()

    @invariant()
    def hold(self) -> None:
        if hasattr(self, "scheduler"):
            invariants.check_all(self.scheduler, self.executor)

    def submit(self) -> None:
        """Plan a step, ahead of the answer to one if that is under way, and compute it."""
        is_ahead = bool(self.in_flight)
        plan = self.scheduler.schedule()
        invariants.check_plan(self.scheduler, plan, ahead=is_ahead)
        if plan.total_num_scheduled_tokens:
            self.in_flight.append((plan, self.executor.execute(plan)))
            seen["planned ahead"] += is_ahead
            seen["prefix hit behind a window"] += any(
                not t[0] and t[-1] for new in plan.new_requests for t in new.block_ids
            )
            seen["window passed on"] += any(
                request.block_tables and not request.block_tables[-1][0] for request in self.scheduler.running
            )
            seen["swapped out"] += bool(plan.swap_out)
            seen["swapped in"] += bool(plan.swap_in)
            seen["swapped in behind a prefix hit"] += any(places[:1] != [0] for _, places, _ in plan.swap_in)
            seen["swapped in vain"] += bool(plan.swap_dropped)

    def step(self, in_the_middle: object = None) -> None:
        scheduler = self.scheduler
        before = scheduler.stats()
        if not self.in_flight:
            self.submit()
        if self.ahead and scheduler.can_plan_ahead:
            self.submit()
        if not self.in_flight:
            return
        if callable(in_the_middle):
            in_the_middle()
        plan, result = self.in_flight.popleft()
        self.take(scheduler.update(plan, result))
        after = scheduler.stats()
        if self.drafter is not None:
            for num_proposed, num_accepted in self.drafter.told:
                seen["draft accepted"] += num_accepted > 0
                seen["draft rejected"] += num_accepted < num_proposed
                seen["draft accepted in part"] += 0 < num_accepted < num_proposed
            self.drafter.told.clear()
            seen["preemption beside drafts"] += after.num_preemptions - before.num_preemptions
            seen["planned ahead beside a drafter"] += bool(self.in_flight)
        seen["preemption"] += after.num_preemptions - before.num_preemptions
        seen["prefix hit"] += after.prefix_cache_hits > before.prefix_cache_hits
        seen["jump in parts"] += any(known.new_token_ids and not result.sampled_token_ids.get(known.slot)
                                     for known in plan.cached_requests)  # fmt: skip
        seen["prompt in parts"] += any(
            count > 1 and not result.sampled_token_ids.get(slot) for slot, count in plan.num_scheduled_tokens.items()
        )

    def take(self, outputs: list[EngineCoreOutput]) -> None:
        for output in outputs:
            request_id = output.request_id
            assert request_id not in self.ends  # I19: one end, nothing after it
            seen["scores in parts"] += bool(self.scores[request_id] and output.prompt_logprobs)
            self.tokens[request_id] += output.new_token_ids
            seen["jump"] += self.guided[request_id] and len(output.new_token_ids) > 1
            self.scores[request_id] += output.prompt_logprobs or []
            if output.finish_reason is not None:
                self.ends[request_id] = output
                seen[output.finish_reason] += 1
                assert request_id not in self.scheduler.requests  # I6

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        # Liveness: each step computes at least one token of somebody; recomputation is bounded by the steps left.
        for _ in range(200 * CONTEXT):
            if not self.scheduler.has_work and not self.in_flight:
                break
            self.step()
            invariants.check_all(self.scheduler, self.executor)
        assert self.ends.keys() == self.messages.keys()  # I2, I19
        for request_id, message in self.messages.items():
            self.check_output(message, self.tokens[request_id], self.ends[request_id])
        invariants.check_idle(self.scheduler)

    def check_output(self, message: AddRequest, tokens: list[int], end: EngineCoreOutput) -> None:
        """I12: the output is that of the request alone, or where it was cut short a beginning of it."""
        if message.request_id not in self.seeds:
            assert tokens == []
            return
        # S19: each token of the prompt is scored once, in order, and all are before there is any output.
        scores = scores_of(message.prompt_token_ids)[:-1] if message.params.prompt_logprobs is not None else []
        told = self.scores[message.request_id]
        assert told == (scores if tokens else scores[: len(told)])
        expected, reason, stop_reason = expected_end(
            message, self.seeds[message.request_id], self.limit, jumps=self.guided[message.request_id]
        )
        if end.finish_reason in ("abort", "error"):
            assert tokens == expected[: len(tokens)]
        else:
            assert (tokens, end.finish_reason, end.stop_reason) == (expected, reason, stop_reason)


EVENTS = (
    "preemption",
    "prefix hit",
    "prompt in parts",
    "abort",
    "abort in a step",
    "error of one",
    "stop",
    "length",
    "error",
    "failed step of a part of a prompt",
    "scores in parts",
    "jump",
    "jump in parts",
    "planned ahead",
    "swapped out",
    "swapped in",
    "swapped in behind a prefix hit",
    "swapped in vain",
    "draft accepted",
    "draft rejected",
    "draft accepted in part",
    "preemption beside drafts",
    "planned ahead beside a drafter",
    "window passed on",
    "prefix hit behind a window",
)
#: Sets of examples that may be needed to see all of them.
MAX_WORLDS = 30
SETTINGS = settings(
    max_examples=150, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


def test_every_request_ends_with_the_tokens_it_gets_alone_and_no_block_is_lost() -> None:
    """Which examples hypothesis draws depends on all that was imported: worlds follow until all has happened."""
    seen.clear()
    for number in range(MAX_WORLDS):
        world = seed(number)(type("World", (Laws,), {}))
        run_state_machine_as_test(world, settings=settings(SETTINGS, max_examples=50))
        if number >= 2 and all(seen[event] for event in EVENTS):
            return
    assert not [event for event in EVENTS if not seen[event]], "never happened"


def test_a_hash_that_collides_all_the_time_never_gives_another_requests_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache_manager, "hash_block", lambda parent, tokens: bytes([sum(tokens) % 3]))
    monkeypatch.setattr(invariants, "hash_block", kv_cache_manager.hash_block)
    run_state_machine_as_test(Laws, settings=settings(SETTINGS, max_examples=40))


def test_a_jump_that_the_worker_was_not_told_of_before_a_preemption_is_told_once() -> None:
    """G26: it comes with the tokens of the request that begins again, and not after them."""
    num_preempted = 0
    for first in range(VOCAB_SIZE):
        engine_info = info(num_kv_blocks=30, block_size=1, max_num_seqs=3, max_num_batched_tokens=4)
        scheduler, executor = Scheduler(EngineConfig(), engine_info), FakeExecutor(engine_info)
        messages = [AddRequest(i, [first, i, 3], SamplingParams(max_tokens=16, seed=1)) for i in range(3)]
        seeds, tokens = {}, {i: list[int]() for i in range(3)}
        for message in messages:
            scheduler.add(message, Jumper())
            seeds[message.request_id] = scheduler.requests[message.request_id].sampling_seed
        while scheduler.has_work:
            jumped = [request for request in scheduler.running if request.unsent_token_ids]
            plan = scheduler.schedule()
            invariants.check_plan(scheduler, plan)
            num_preempted += sum(request.slot < 0 for request in jumped)
            for output in scheduler.update(plan, executor.execute(plan)):
                tokens[output.request_id] += output.new_token_ids
        for message in messages:
            expected = expected_end(message, seeds[message.request_id], CONTEXT, jumps=True)
            assert tokens[message.request_id] == expected[0]
    assert num_preempted > 0
