"""Layers with a window give back blocks that they no longer see, and no bit of a reply depends on it: real weights,
with contexts of several windows, through prefix hits, chunks, preemption and swapping."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from engine.harness import Engine, Reply, Run, request
from octavo.cache.spec import FullKV, max_group_blocks
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest

WINDOW, BLOCK = 512, 16
#: Of the model's six groups of three layers the first keeps all keys.
NUM_WINDOWED = 5


@pytest.fixture(scope="module")
def engine(gemma_gguf: Path) -> Engine:
    engine = Engine(gemma_gguf)
    assert engine.info.kv_group_windows == (0, *[WINDOW] * NUM_WINDOWED)
    return engine


def requests_under_test() -> list[AddRequest]:
    """Beyond the window from the prompt on, across it while generating, and below it; two share 700 tokens."""
    rng = random.Random(3)
    shared = [rng.randrange(1000, 40_000) for _ in range(700)]
    prompts = [
        [*shared, *(rng.randrange(1000, 40_000) for _ in range(500))],
        [*shared, *(rng.randrange(1000, 40_000) for _ in range(60))],
        [rng.randrange(1000, 40_000) for _ in range(WINDOW - 10)],
        [rng.randrange(1000, 40_000) for _ in range(40)],
    ]
    sampled = {"temperature": 0.9, "top_p": 0.95, "seed": 11}
    return [request(i, prompt, max_tokens=40, **(sampled if i % 2 else {})) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    """Each request by itself, computed in as few steps as there can be, without prefix cache."""
    replies = {}
    for one in requests_under_test():
        scheduler = engine.scheduler(prefix_caching=False, max_num_prefill_tokens=512)
        replies |= engine.run([one], scheduler=scheduler).replies
    assert all(len(reply.token_ids) == 40 and reply.finish_reason == "length" for reply in replies.values())
    return replies


def check(run: Run, alone: dict[int, Reply]) -> None:
    for request_id, reply in run.replies.items():
        assert reply == alone[request_id], f"request {request_id} differs"


def check_all_free(scheduler: Scheduler) -> None:
    assert scheduler.kv.num_blocks_used == 0


def test_replies_are_those_of_a_cache_that_keeps_every_key(
    gemma_gguf: Path, alone: dict[int, Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same layers in one group, whose blocks all stay: attention looks at its window alone, and nothing else is
    different."""
    import octavo.models.decoder as decoder

    groups = decoder.cache_groups
    monkeypatch.setattr(decoder, "cache_groups", lambda kinds, sizes: groups([FullKV()] * len(kinds), sizes))
    engine = Engine(gemma_gguf)
    assert engine.info.kv_group_windows == (0,)
    check(engine.run(requests_under_test()), alone)


@pytest.mark.parametrize("prefill", [100, 33])
def test_in_company_and_however_the_prompt_is_chunked(engine: Engine, alone: dict[int, Reply], prefill: int) -> None:
    scheduler = engine.scheduler(prefix_caching=False, max_num_prefill_tokens=prefill)
    check(engine.run(requests_under_test(), scheduler=scheduler), alone)
    check_all_free(scheduler)


def test_with_the_prompt_in_the_prefix_cache(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler()
    first, second, *others = requests_under_test()
    engine.run([first, *others], scheduler=scheduler)
    # 700 tokens are shared: of the layers with a window only the last 512 of them had to be there still.
    run = engine.run([second], scheduler=scheduler)
    assert run.prefix_cache_hits == 700 // BLOCK * BLOCK
    check(run, alone)
    check(engine.run(requests_under_test(), scheduler=scheduler), alone)
    check_all_free(scheduler)


def test_a_hit_reaches_as_far_as_the_blocks_of_all_groups(engine: Engine, alone: dict[int, Reply]) -> None:
    """Of a chain in the cache some blocks of the windows go: what is found is shorter, or nothing, and never wrong."""
    rng = random.Random(8)
    scheduler = engine.scheduler()
    engine.run(requests_under_test(), scheduler=scheduler)
    pool = scheduler.kv.pool
    for _ in range(4):
        for block in rng.sample([block for block in pool.blocks if block.node is not None and block.group], 25):
            pool.uncache(block.block_id)
        check(engine.run(requests_under_test(), scheduler=scheduler), alone)


@pytest.mark.parametrize("num_swap_blocks", [0, 10_000])
def test_through_preemption(engine: Engine, alone: dict[int, Reply], num_swap_blocks: int) -> None:
    """Two requests in room for one and a half: 32 blocks in each of six groups, and 12 more beyond 512 tokens."""
    scheduler = engine.scheduler(num_kv_blocks=392, prefix_caching=False, num_swap_blocks=num_swap_blocks)
    one = requests_under_test()[2]
    twins = [request(i, one.prompt_token_ids, max_tokens=40) for i in range(2)]
    run = engine.run(twins, scheduler=scheduler)
    assert run.num_preemptions > 0 and (run.num_swapped > 0) == (num_swap_blocks > 0)
    assert run.replies[0] == run.replies[1] == alone[2]
    check_all_free(scheduler)


@pytest.mark.parametrize("num_swap_blocks", [0, 10_000])
def test_through_preemption_beyond_the_window(engine: Engine, alone: dict[int, Reply], num_swap_blocks: int) -> None:
    """The newest request gives up its blocks again and again: in its prompt, and while it generates."""
    scheduler = engine.scheduler(prefix_caching=False, num_swap_blocks=num_swap_blocks)
    replies = {message.request_id: Reply() for message in requests_under_test()[:2]}
    for message in requests_under_test()[:2]:
        scheduler.add(message)
    step = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        for output in scheduler.update(plan, engine.worker.execute(plan)):
            replies[output.request_id].token_ids += output.new_token_ids
        step += 1
        if step in (3, 9, 18, 25) and scheduler.running:
            scheduler.live.preempt(scheduler.running[-1])
    assert scheduler.stats().num_preemptions == 4
    for request_id, reply in replies.items():
        assert reply.token_ids == alone[request_id].token_ids
    check_all_free(scheduler)


def test_a_long_sequence_holds_what_its_windows_see(engine: Engine) -> None:
    """At 1,700 tokens, before and after: each group with a window has 33 blocks or fewer, and not 107."""
    scheduler = engine.scheduler(prefix_caching=False, max_num_prefill_tokens=128)
    (one,) = requests_under_test()[:1]
    message = request(9, one.prompt_token_ids + one.prompt_token_ids[:500], max_tokens=8)
    most, held = 0, []
    for used in used_blocks(engine, scheduler, message):
        most, held = max(most, used), [*held, used]
    num_blocks = -(-1707 // BLOCK)
    bound = max_group_blocks(WINDOW, num_blocks, BLOCK, 128)
    assert most <= num_blocks + NUM_WINDOWED * bound
    assert held[-2] <= num_blocks + NUM_WINDOWED * (WINDOW // BLOCK + 1)
    check_all_free(scheduler)


def used_blocks(engine: Engine, scheduler: Scheduler, message: AddRequest) -> Iterable[int]:
    """The blocks in use after each step of a request."""
    scheduler.add(message)
    while scheduler.has_work:
        plan = scheduler.schedule()
        scheduler.update(plan, engine.worker.execute(plan))
        yield scheduler.kv.num_blocks_used
