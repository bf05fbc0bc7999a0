"""Encoding spread over the steps in which others decode: in order, no more a step than it may, and never lost.

The fake worker asserts that one item at a time is under way, that it goes on from where it was, and that no rows are
read before its end.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from core.test_media import add, run
from core.test_scheduler import World
from octavo.base.media import MediaItem, MediaTensor
from octavo.core.media import MediaCosts
from octavo.wire.step import SchedulerOutput


def world(**changes: Any) -> World:
    """A step in which others decode encodes 4 patches."""
    seeing = {"media_kinds": ("image",), "media_step_rows": 64, "media_cache_rows": 64, "max_num_prefill_tokens": 16}
    return World(**(seeing | changes))


def image(start: int, length: int, digest: bytes, size: int = 10) -> MediaItem:
    return MediaItem("image", digest, {"patches": MediaTensor("uint8", (1, size, 3), b"")}, ((start, length),))


def parts(plan: SchedulerOutput) -> list[tuple[bytes, int | None]]:
    return [(part.digest, part.end) for part in plan.media_encoded]


def decoding(**changes: Any) -> World:
    """With request 1, in slot 0, which decodes for long."""
    seen = world(**changes)
    add(seen, 1, 3, max_tokens=60)
    seen.step()
    return seen


def until_encoded(seen: World, digest: bytes) -> list[SchedulerOutput]:
    plans = []
    while digest not in seen.executor.media:
        plans.append(seen.step())
    return plans


def test_an_item_is_spread_over_steps_and_the_text_before_it_is_computed_meanwhile() -> None:
    seen = decoding()
    add(seen, 2, 30, image(20, 4, b"a"))
    plans = [seen.step() for _ in range(4)]
    assert [parts(plan) for plan in plans] == [[], [(b"a", 4)], [(b"a", 8)], [(b"a", None)]]
    assert [plan.num_scheduled_tokens for plan in plans] == [{0: 1, 1: 16}, {0: 1, 1: 4}, {0: 1}, {0: 1, 1: 10}]
    assert [plan.media_encoded[0].item is not None for plan in plans[1:]] == [True, False, False]
    stats = seen.scheduler.stats()
    assert (stats.media_queries, stats.media_hits, stats.media_rows_encoded) == (1, 0, 4)


def test_where_nobody_decodes_all_of_it_is_encoded_at_once() -> None:
    seen = world()
    add(seen, 1, 12, image(0, 4, b"a", 400))
    assert parts(seen.step()) == [(b"a", None)]


def test_when_nobody_decodes_any_more_the_rest_is_encoded_at_once() -> None:
    seen = decoding()
    add(seen, 2, 12, image(0, 4, b"a", 400))
    assert parts(seen.step()) == [(b"a", 4)]
    seen.scheduler.abort([1])
    assert parts(seen.step()) == [(b"a", None)]


def test_a_prompt_that_must_be_computed_whole_is_encoded_at_once() -> None:
    seen = decoding(chunked=False, max_num_batched_tokens=64, max_num_prefill_tokens=64)
    add(seen, 2, 12, image(0, 4, b"a", 400), image(5, 4, b"b", 400))
    assert parts(seen.step()) == [(b"a", None), (b"b", None)]


def test_items_come_in_order_and_text_passes_those_who_wait() -> None:
    seen = decoding()
    add(seen, 2, 8, image(0, 4, b"a", 6))
    add(seen, 3, 8, image(0, 4, b"b", 6))
    add(seen, 4, 5)
    plans = [seen.step() for _ in range(4)]
    assert [parts(plan) for plan in plans] == [[(b"a", 4)], [(b"a", None), (b"b", 2)], [(b"b", None)], []]
    assert [[new.request_id for new in plan.new_requests] for plan in plans] == [[4], [2], [3], []]


def test_encoding_takes_the_place_of_tokens_of_prompts() -> None:
    seen = decoding()
    add(seen, 2, 8, image(0, 4, b"a", 100))
    add(seen, 3, 60)
    assert [seen.step().num_scheduled_tokens for _ in range(3)] == [{0: 1, 1: 16}, {0: 1, 1: 12}, {0: 1, 1: 12}]


@pytest.mark.parametrize(("costs", "expected"), [((0, 0, 0), 1.0), ((100, 150, 0), 1.5), ((100, 150, 5), 2.0)])
def test_what_a_patch_costs_in_tokens(costs: tuple[int, int, int], expected: float) -> None:
    assert MediaCosts(*costs).of_unit(image(0, 1, b"a", 10)) == expected


def test_patches_that_cost_more_are_fewer_a_step() -> None:
    seen = decoding(layer_ops_per_token=100, media_unit_ops=150, media_attention_ops=5)
    add(seen, 2, 8, image(0, 4, b"a"))
    assert [parts(plan) for plan in until_encoded(seen, b"a")] == [[(b"a", end)] for end in (2, 4, 6, 8, None)]


def test_an_item_that_two_have_asked_for_goes_on_without_the_first() -> None:
    seen = decoding()
    for request_id in (2, 3):
        add(seen, request_id, 8, image(0, 4, b"a"))
    seen.step()
    seen.scheduler.abort([2])
    assert [parts(plan) for plan in until_encoded(seen, b"a")] == [[(b"a", 8)], [(b"a", None)]]


@pytest.mark.parametrize("start", [0, 2])
def test_an_item_that_nobody_wants_any_more_is_given_up(start: int) -> None:
    """Of a request that waits, and of one that runs."""
    seen = decoding()
    add(seen, 2, 8, image(start, 4, b"a", 100))
    plans = [seen.step() for _ in range(3)]
    assert parts(plans[-1])
    seen.scheduler.abort([2])
    plan = seen.step()
    assert (plan.media_dropped, plan.media_encoded) == ([b"a"], [])
    assert seen.scheduler.stats().media_rows_used == 0
    add(seen, 3, 8, image(0, 4, b"a", 4))
    assert parts(seen.step()) == [(b"a", None)]


def test_what_a_failed_step_was_to_encode_is_begun_anew() -> None:
    seen = decoding()
    add(seen, 2, 12, image(2, 4, b"a"))
    seen.step()
    assert parts(seen.step()) == [(b"a", 4)]
    plan = seen.scheduler.schedule()
    assert parts(plan) == [(b"a", 8)]
    seen.scheduler.fail_step(plan, "broken")  # request 1 was part of it
    add(seen, 3, 3, max_tokens=30)
    plan = seen.step()
    assert plan.media_dropped == [b"a"] and parts(plan) == [(b"a", None)] and plan.media_encoded[0].item is not None
    run(seen)
    assert seen.outputs[2][-1].finish_reason == "length"


def test_a_worker_that_has_slept_is_told_everything_anew() -> None:
    seen = decoding()
    add(seen, 2, 8, image(0, 4, b"a"))
    seen.step()
    for output in seen.scheduler.abort([1, 2]):
        seen.outputs.setdefault(output.request_id, []).append(output)
    seen.executor.sleep(1)
    seen.scheduler.forget_worker()
    seen.executor.wake_up()
    add(seen, 3, 8, image(0, 4, b"a"))
    plan = seen.step()
    assert plan.media_encoded[0].item is not None and parts(plan) == [(b"a", None)] and not plan.media_dropped


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_all_requests_end_and_rows_are_there_when_they_are_read(seed: int) -> None:
    """Few blocks, so that requests are preempted; little room for rows; aborts and steps that fail."""
    rng = random.Random(seed)
    seen = world(num_kv_blocks=14, media_cache_rows=12, media_step_rows=8, max_num_seqs=4, caching=seed % 2 == 0)
    alive: list[int] = []
    for number in range(1, 120):
        if rng.random() < 0.5:
            spans = rng.choice([(), (0,), (3,), (1, 9), (8,)])
            media = [image(at, 5, bytes([of]), 3 + 7 * of) for at in spans for of in [rng.randrange(5)]]
            add(seen, number, 20, *media, max_tokens=rng.randrange(1, 12))
            alive.append(number)
        if alive and rng.random() < 0.1:
            seen.scheduler.abort([alive.pop(rng.randrange(len(alive)))])
        if not seen.scheduler.has_work:
            continue
        if rng.random() < 0.05:
            plan = seen.scheduler.schedule()
            if rng.random() < 0.5:
                seen.executor.execute(plan)  # it failed behind encoding
            seen.scheduler.fail_step(plan, "broken")
        else:
            seen.step()
    run(seen)
    assert not seen.scheduler.requests and seen.executor.under_way is None
    assert seen.scheduler.stats().media_rows_used <= 12
