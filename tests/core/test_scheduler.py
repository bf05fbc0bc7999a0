"""The scheduler by example: what one step holds."""

from __future__ import annotations

import pytest

from core import invariants
from core.fake import FakeExecutor, alone, info
from octavo.base.config import CacheConfig, EngineConfig, SchedulerConfig
from octavo.base.params import SamplingParams
from octavo.base.repetition import RepetitionDetection
from octavo.core.blocks.block_pool import PrefixNode
from octavo.core.request import sampling_seed_of
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest, EngineCoreOutput, EngineInfo, TokenLogprobs
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput


class World:
    """A scheduler with its fake executor; keeps every output by request id."""

    def __init__(self, *, chunked: bool = True, caching: bool = True, seed: int = 0, **changes: object) -> None:
        self.config = EngineConfig(
            cache=CacheConfig(enable_prefix_caching=caching), scheduler=SchedulerConfig(enable_chunked_prefill=chunked)
        )
        self.info: EngineInfo = info(**changes)
        self.scheduler = Scheduler(self.config, self.info)
        self.executor = FakeExecutor(self.info)
        self.outputs: dict[int, list[EngineCoreOutput]] = {}
        self.messages: dict[int, AddRequest] = {}

    def add(self, request_id: int, prompt: list[int], *, sample_index: int = 0, priority: int = 0, salt: str = "",
            eos: tuple[int, ...] = (), **params: object) -> EngineCoreOutput | None:  # fmt: skip
        params.setdefault("max_tokens", 4)
        message = AddRequest(request_id, prompt, SamplingParams(**params), eos, sample_index, priority, salt)  # type: ignore[arg-type]
        self.messages[request_id] = message
        return self.scheduler.add(message)

    def step(self, result: ModelRunnerOutput | None = None) -> SchedulerOutput:
        plan = self.scheduler.schedule()
        invariants.check_plan(self.scheduler, plan)
        computed = self.executor.execute(plan)
        for output in self.scheduler.update(plan, result or computed):
            self.outputs.setdefault(output.request_id, []).append(output)
        invariants.check_all(self.scheduler, self.executor)
        return plan

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def scheduled(self, plan: SchedulerOutput) -> dict[int, int]:
        """Call before update ends requests: request id -> tokens."""
        slots = self.scheduler.slots
        return {slots[slot].request_id: count for slot, count in plan.num_scheduled_tokens.items()}  # type: ignore[union-attr]

    def tokens(self, request_id: int) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.new_token_ids]

    def stops(self, request_id: int) -> tuple[str | None, int | None]:
        last = self.outputs[request_id][-1]
        return last.finish_reason, last.stop_reason


def prompt(start: int, length: int) -> list[int]:
    return [(start + i) % 50 for i in range(length)]


# ---------------------------------------------------------------------------------------------------- the budget
def test_decodes_come_first_and_prompts_take_the_rest_of_the_budget() -> None:
    world = World(max_num_batched_tokens=10)
    world.add(1, prompt(0, 3))
    assert world.scheduled(world.step()) == {1: 3}
    world.add(2, prompt(10, 20))
    world.add(3, prompt(20, 5))
    assert world.scheduled(world.step()) == {1: 1, 2: 9}
    assert list(world.scheduled(world.step()).items()) == [(1, 1), (2, 9)]
    plan = world.scheduler.schedule()
    assert list(world.scheduled(plan).items()) == [(1, 1), (2, 2), (3, 5)]


def test_without_chunked_prefill_a_prompt_is_scheduled_whole_or_not_at_all() -> None:
    world = World(chunked=False, max_num_batched_tokens=64)
    world.add(1, prompt(0, 40))
    world.add(2, prompt(10, 40))
    world.add(3, prompt(20, 2))
    assert world.scheduled(world.step()) == {1: 40}  # 3 would fit, but does not overtake 2
    assert world.scheduled(world.step()) == {1: 1, 2: 40, 3: 2}


def test_no_more_requests_run_than_there_are_slots() -> None:
    world = World(max_num_seqs=2)
    for i in range(3):
        world.add(i, prompt(i, 3), max_tokens=2)
    assert world.scheduled(world.step()).keys() == {0, 1}
    world.step()
    plan = world.step()
    assert plan.finished_slots and plan.new_requests[0].request_id == 2


def test_waiting_requests_enter_by_priority_and_then_by_arrival() -> None:
    world = World(max_num_seqs=1)
    for request_id, priority in ((1, 0), (2, 0), (3, -1)):
        world.add(request_id, prompt(request_id, 3), priority=priority)
    order = []
    while world.scheduler.has_work:
        order += [new.request_id for new in world.step().new_requests]
    assert order == [3, 1, 2]


# --------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("length", "max_tokens", "refused"),
    [(63, 1, False), (60, 4, False), (61, 4, True), (64, 1, True), (63, None, False), (64, None, True)],
)
def test_what_exceeds_the_context_is_refused_with_both_numbers(
    length: int, max_tokens: int | None, refused: bool
) -> None:
    world = World()
    output = world.add(1, prompt(0, length), max_tokens=max_tokens)
    assert (output is not None) == refused
    if output is not None:
        assert output.finish_reason == "error"
        assert str(length + (max_tokens or 1)) in (output.error or "") and "64" in (output.error or "")
    world.run()


def test_what_exceeds_the_cache_is_refused_with_both_numbers_and_the_queue_moves_on() -> None:
    world = World(num_kv_blocks=5)
    output = world.add(1, prompt(0, 13), max_tokens=4)
    assert output is not None and "17" in (output.error or "") and "16" in (output.error or "")
    assert world.add(2, prompt(0, 12), max_tokens=4) is None
    world.run()
    assert world.stops(2) == ("length", None)


@pytest.mark.parametrize("ids", [[], [-1], [1, 50], [2**40]])
def test_a_prompt_that_is_empty_or_has_an_unknown_id_is_refused(ids: list[int]) -> None:
    output = World().add(1, ids)
    assert output is not None and output.finish_reason == "error"


# ------------------------------------------------------------------------------------------------ prefix cache
def test_a_second_request_computes_only_what_the_first_has_not() -> None:
    world = World()
    world.add(1, prompt(0, 18))
    world.run()
    world.add(2, [*prompt(0, 14), 3, 3, 3])
    assert world.scheduled(world.step()) == {2: 5}  # 3 blocks of 4 are found
    world.run()
    assert world.outputs[2][0].num_cached_tokens == 12
    stats = world.scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (18 + 17, 12)


def test_a_hit_leaves_one_token_to_compute() -> None:
    world = World()
    world.add(1, prompt(0, 16))
    world.run()
    world.add(2, prompt(0, 16))
    assert world.scheduled(world.step()) == {2: 4}
    world.run()
    assert world.tokens(1) != [] and world.outputs[2][0].num_cached_tokens == 12


def test_requests_with_other_salts_share_nothing() -> None:
    world = World()
    world.add(1, prompt(0, 17), salt="a")
    world.run()
    for request_id, salt, hit in ((2, "b", 0), (3, "", 0), (4, "a", 16)):
        world.add(request_id, prompt(0, 17), salt=salt)
        world.run()
        assert world.outputs[request_id][0].num_cached_tokens == hit


def test_prompts_take_no_more_of_a_step_than_they_may_and_running_requests_are_beside_it() -> None:
    world = World(max_num_batched_tokens=20, max_num_prefill_tokens=6)
    for i in range(3):
        world.add(i, prompt(i, 4), max_tokens=9)
    world.add(3, prompt(3, 15), max_tokens=9)
    assert world.scheduled(world.step()) == {0: 4, 1: 2}
    assert world.scheduled(world.step()) == {0: 1, 1: 2, 2: 4}
    assert world.scheduled(world.step()) == {0: 1, 1: 1, 2: 1, 3: 6}
    assert world.scheduled(world.step()) == {0: 1, 1: 1, 2: 1, 3: 6}
    assert world.scheduled(world.step()) == {0: 1, 1: 1, 2: 1, 3: 3}


def test_s9_samples_of_one_prompt_compute_it_once() -> None:
    world = World(max_num_batched_tokens=8)
    for i in range(4):
        world.add(i, prompt(0, 18), sample_index=i, temperature=1.0)
    plans = []
    while world.scheduler.has_work:
        plan = world.scheduler.schedule()
        plans.append(world.scheduled(plan))
        for output in world.scheduler.update(plan, world.executor.execute(plan)):
            world.outputs.setdefault(output.request_id, []).append(output)
    assert plans[:4] == [{0: 8}, {0: 8}, {0: 2, 1: 2, 2: 2, 3: 2}, {0: 1, 1: 1, 2: 1, 3: 1}]
    assert len({tuple(world.tokens(i)) for i in range(4)}) == 4


def test_a_request_that_waits_for_anothers_prompt_lets_others_pass_and_inherits_when_it_is_aborted() -> None:
    world = World(max_num_batched_tokens=10)
    world.add(1, prompt(0, 30))
    world.step()
    world.add(2, prompt(0, 30))
    assert world.scheduled(world.step()) == {1: 10}
    world.scheduler.abort([1])
    assert world.scheduled(world.step()) == {2: 10}  # the 20 tokens that 1 computed are found
    world.run()
    assert world.outputs[2][0].num_cached_tokens == 20


def test_two_requests_of_one_step_do_not_share_what_is_not_computed_yet() -> None:
    world = World()
    world.add(1, [*prompt(0, 4), *prompt(9, 9)])
    world.add(2, [*prompt(0, 4), *prompt(30, 9)])  # shares less than half: is not held back
    plan = world.step()
    tables = [set(new.block_ids[0]) for new in plan.new_requests]
    assert len(tables) == 2 and not tables[0] & tables[1]
    world.run()
    for i in (1, 2):
        assert world.tokens(i) == alone(world.messages[i], 4, sampling_seed_of(world.messages[i], 0, i))


def test_of_a_chain_the_tail_is_evicted_first() -> None:
    world = World(num_kv_blocks=9)
    world.add(1, prompt(0, 24), max_tokens=1)
    world.run()
    world.add(2, prompt(25, 16), max_tokens=1)  # takes two unnamed blocks, then the last two of the chain
    world.run()
    world.add(3, prompt(0, 24), max_tokens=1)
    world.run()
    assert world.outputs[3][0].num_cached_tokens == 16


def test_a_window_holds_the_blocks_that_the_next_tokens_see() -> None:
    """Blocks of 4, windows of 6, prompts in parts of 4: at most three blocks a group, wherever the prompt stands."""
    world = World(kv_group_windows=(0, 6, 6), max_num_batched_tokens=4, num_kv_blocks=20)
    assert world.add(1, prompt(0, 40), max_tokens=4) is None
    used = []
    while world.scheduler.has_work:
        world.step()
        used.append(world.scheduler.kv.num_blocks_used)
    assert used[:5] == [12, 14, 14, 14, 14] and max(used) == 15
    assert world.scheduler.kv.capacity_tokens == 11 * 4  # and two groups of four blocks: 19
    # All of the prompt is found again, though of the windows' blocks only the last two are held.
    world.add(2, [*prompt(0, 40), 49], max_tokens=1)
    (new,) = world.step().new_requests
    assert new.num_computed_tokens == 40
    assert [table.count(0) for table in new.block_ids] == [0, 8, 8] and {len(table) for table in new.block_ids} == {11}


def test_a_hit_ends_where_a_window_has_lost_a_block() -> None:
    world = World(kv_group_windows=(0, 6))
    world.add(1, prompt(0, 40), max_tokens=1)
    world.run()
    pool = world.scheduler.kv.pool
    # The next token sees five keys, in two blocks, and behind the first block in one.
    for lost, expected in ((9, 36), (3, 36), (8, 32), (7, 28), (0, 28), (6, 24), (5, 12), (2, 0)):
        (block,) = [b for b in pool.blocks if b.node is not None and b.group == 1 and index_of(b.node) == lost]
        del pool._evictable[block.block_id]
        pool._forget(block)
        pool._unnamed.append(block.block_id)
        world.add(100 + lost, [*prompt(0, 40), 49], max_tokens=1)
        plan = world.scheduler.schedule()
        assert plan.new_requests[0].num_computed_tokens == expected, lost
        world.scheduler.abort([100 + lost])


def index_of(node: PrefixNode) -> int:
    """How many blocks come before it."""
    return 0 if isinstance(node.parent, str) else 1 + index_of(node.parent)


def test_without_prefix_caching_everything_is_computed_anew() -> None:
    world = World(caching=False)
    for i in range(2):
        world.add(i, prompt(0, 20))
        assert world.scheduled(world.step()) == {i: 20}
        world.run()
    assert world.scheduler.kv.pool.num_cached == 0


# --------------------------------------------------------------------------------------------------- preemption
def test_when_blocks_run_out_the_newest_gives_way_and_still_ends_with_its_own_tokens() -> None:
    world = World(num_kv_blocks=9)
    for i in range(3):
        world.add(i, prompt(10 * i, 7), max_tokens=20)
    world.run()
    assert world.scheduler.stats().num_preemptions > 0
    for i in range(3):
        assert world.tokens(i) == alone(world.messages[i], 20, sampling_seed_of(world.messages[i], 0, i + 1))
    ended = list(world.outputs)
    assert ended[0] == 0


def test_the_oldest_request_is_never_preempted() -> None:
    world = World(num_kv_blocks=9)
    for i in range(3):
        world.add(i, prompt(10 * i, 7), max_tokens=20)
    entered = []
    while world.scheduler.has_work:
        entered += [new.request_id for new in world.step().new_requests]
    assert entered.count(0) == 1 and entered.count(2) > 1


@pytest.mark.parametrize("caches_output", [True, False])
def test_where_generated_tokens_round_differently_their_blocks_serve_no_prompt(caches_output: bool) -> None:
    world = World(num_kv_blocks=30, caches_output=caches_output)
    world.add(1, prompt(0, 6), max_tokens=10)
    world.run()
    text = [*prompt(0, 6), *world.tokens(1)]
    world.add(2, [*text[:14], 49], max_tokens=2)
    plan = world.step()
    # Blocks of 4: the prompt fills one, the whole text three that were computed.
    assert plan.new_requests[0].num_computed_tokens == (12 if caches_output else 4)
    world.run()


def swapping_world() -> World:
    """Three requests in room for two; no prefix hits, so that what is not swapped must be computed again."""
    world = World(num_kv_blocks=9, num_swap_blocks=100, caching=False)
    for i in range(3):
        world.add(i, prompt(10 * i, 7), max_tokens=20)
    return world


def test_a_preempted_request_goes_on_where_it_was_when_the_host_has_kept_its_blocks() -> None:
    world = swapping_world()
    resumed, num_computed = [], 0
    while world.scheduler.has_work:
        plan = world.step()
        num_computed += plan.total_num_scheduled_tokens
        resumed += [new for new in plan.new_requests if new.num_computed_tokens]
        assert not (plan.swap_in and plan.swap_out)
    assert resumed and all(len(new.prompt_token_ids) == new.num_computed_tokens + 1 for new in resumed)
    assert num_computed == 3 * (7 + 19)  # nothing twice


@pytest.mark.parametrize("step", ["swap_out", "swap_in"])
def test_a_step_that_fails_while_it_swaps_leaves_nothing_behind_on_the_host(step: str) -> None:
    world = swapping_world()
    while not getattr(plan := world.scheduler.schedule(), step):
        world.scheduler.update(plan, world.executor.execute(plan))
    world.scheduler.fail_step(plan, "memory")
    invariants.check_all(world.scheduler, world.executor)
    world.run()
    world.add(9, prompt(0, 2))
    world.run()
    assert not world.executor.swapped and world.scheduler.kv.num_free_swap_blocks == 100


def test_the_cached_tokens_of_a_resumed_request_are_those_of_its_first_start() -> None:
    world = World(num_kv_blocks=9)
    for i in range(3):
        world.add(i, prompt(10 * i, 7), max_tokens=20)
    world.run()
    assert all(outputs[0].num_cached_tokens == 0 for outputs in world.outputs.values())
    assert all(o.scheduled_time == 0.0 for outputs in world.outputs.values() for o in outputs[1:])


def test_small_requests_do_not_overtake_a_large_one_that_waits_for_blocks() -> None:
    world = World(num_kv_blocks=13)
    world.add(1, prompt(0, 20), max_tokens=12)
    world.step()
    world.add(2, prompt(25, 30), max_tokens=2)
    for i in range(3, 30):
        world.add(i, prompt(i, 3), max_tokens=2)
    order = []
    while world.scheduler.has_work:
        order += [new.request_id for new in world.step().new_requests]
    assert order[0] == 2


# ----------------------------------------------------------------------------------------------------- the end
def first_tokens(**params: object) -> list[int]:
    world = World()
    world.add(1, [5, 6, 7], max_tokens=8, **params)
    world.run()
    return world.tokens(1)


def test_s13_a_request_stops_at_eos_which_is_sent_but_has_no_stop_reason() -> None:
    expected = first_tokens()
    world = World()
    world.add(1, [5, 6, 7], max_tokens=8, eos=(expected[2],), stop_token_ids=(expected[2],))
    world.run()
    assert (world.tokens(1), world.stops(1)) == (expected[:3], ("stop", None))


def test_s13_a_stop_token_id_is_reported_also_when_it_is_an_eos_that_is_ignored() -> None:
    expected = first_tokens()
    world = World()
    world.add(1, [5, 6, 7], max_tokens=8, eos=(expected[2],), stop_token_ids=(expected[2],), ignore_eos=True)
    world.run()
    assert (world.tokens(1), world.stops(1)) == (expected[:3], ("stop", expected[2]))


def test_s15_ignore_eos_runs_to_max_tokens() -> None:
    expected = first_tokens()
    world = World()
    world.add(1, [5, 6, 7], max_tokens=8, eos=(expected[2],), ignore_eos=True)
    world.run()
    assert (world.tokens(1), world.stops(1)) == (expected, ("length", None))


@pytest.mark.parametrize(("min_tokens", "stops"), [(2, True), (3, False)])
def test_s17_nothing_stops_a_request_within_min_tokens(min_tokens: int, stops: bool) -> None:
    expected = first_tokens()
    assert expected[2] not in expected[3:]
    world = World()
    world.add(1, [5, 6, 7], max_tokens=8, min_tokens=min_tokens, eos=(expected[2],))
    world.run()
    assert world.stops(1) == (("stop", None) if stops else ("length", None))


def test_a_stop_at_the_last_allowed_token_is_a_stop() -> None:
    expected = first_tokens()
    world = World()
    world.add(1, [5, 6, 7], max_tokens=3, eos=(expected[2],))
    world.run()
    assert world.stops(1) == ("stop", None)


def test_s16_without_max_tokens_a_request_runs_to_the_end_of_the_context() -> None:
    world = World()
    world.add(1, prompt(0, 60), max_tokens=None)
    world.run()
    assert (len(world.tokens(1)), world.stops(1)) == (4, ("length", None))


def test_an_error_of_one_row_ends_that_request_and_forgets_its_blocks() -> None:
    world = World()
    world.add(1, prompt(0, 18))
    world.add(2, prompt(25, 18))
    world.step()
    world.executor.errors = {1: "NaN in the logits"}
    world.step()
    assert world.stops(1) == ("error", None) and world.outputs[1][-1].error == "NaN in the logits"
    world.add(3, prompt(0, 18))
    world.run()
    assert world.outputs[3][0].num_cached_tokens == 0
    assert world.tokens(2) == alone(world.messages[2], 4, sampling_seed_of(world.messages[2], 0, 2))


# -------------------------------------------------------------------------------------------------------- seeds
def message(sample_index: int = 0, seed: int | None = None) -> AddRequest:
    return AddRequest(1, [1], SamplingParams(seed=seed), sample_index=sample_index)


def test_the_same_seed_and_sample_give_the_same_numbers_whatever_the_engine_did_before() -> None:
    assert sampling_seed_of(message(seed=5), 0, 1) == sampling_seed_of(message(seed=5), 9, 77)


def test_samples_requests_and_engines_differ_in_their_seeds() -> None:
    seeds = [
        sampling_seed_of(message(0, 5), 0, 1),
        sampling_seed_of(message(1, 5), 0, 1),
        sampling_seed_of(message(0, -5), 0, 1),
        sampling_seed_of(message(), 0, 1),
        sampling_seed_of(message(), 0, 2),
        sampling_seed_of(message(), 1, 1),
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_logprobs_go_with_their_token() -> None:
    world = World()
    world.add(1, [5, 6, 7], logprobs=1)
    plan = world.scheduler.schedule()
    result = world.executor.execute(plan)
    entry = TokenLogprobs(-0.5, 1, [3], [-0.5])
    result.logprobs = {slot: [entry] for slot in plan.num_scheduled_tokens}
    (output,) = world.scheduler.update(plan, result)
    assert output.logprobs == [entry]


# ---------------------------------------------------------------------------------------------------- progress
def test_the_progress_of_a_prompt_is_told_to_who_asks_until_its_first_token() -> None:
    world = World(max_num_batched_tokens=8)
    world.add(1, prompt(0, 20), return_progress=True)
    world.add(2, prompt(7, 20))
    world.run()
    told = [(output.num_computed_tokens, len(output.new_token_ids)) for output in world.outputs[1]]
    assert told == [(8, 0), (16, 0), (0, 1), (0, 1), (0, 1), (0, 1)]
    assert all(output.new_token_ids for output in world.outputs[2])


def test_a_repetition_ends_a_request_where_it_is_complete() -> None:
    world = World()
    world.add(1, prompt(0, 4), max_tokens=20, repetition_detection=RepetitionDetection(max_pattern_size=1, min_count=2))
    plan = world.step()
    [slot] = plan.num_scheduled_tokens
    for tokens in ([5], [6], [6]):
        world.step(ModelRunnerOutput({slot: tokens}))
    assert world.tokens(1)[1:] == [5, 6, 6] and world.stops(1) == ("repetition", None)
    assert not world.scheduler.has_work
