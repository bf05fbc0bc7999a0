"""Media of prompts: encoded once, within what a step and the worker have room for, and never cut where they must not.

The fake worker asserts that the rows of every placeholder that it computes are there.
"""

from __future__ import annotations

from typing import Any

import pytest

from core.test_scheduler import World
from octavo.base.media import MediaItem
from octavo.base.params import SamplingParams
from octavo.wire.messages import AddRequest
from octavo.wire.step import SchedulerOutput


def world(**changes: Any) -> World:
    seeing = {"media_kinds": ("image",), "media_step_rows": 8, "media_cache_rows": 16}
    return World(**(seeing | changes))


def image(start: int, length: int, digest: bytes) -> MediaItem:
    return MediaItem("image", digest, {}, ((start, length),))


def add(world: World, request_id: int, num_tokens: int, *media: MediaItem, max_tokens: int = 2) -> Any:
    message = AddRequest(request_id, [7] * num_tokens, SamplingParams(max_tokens=max_tokens), media=media)
    world.messages[request_id] = message
    return world.scheduler.add(message)


def encoded(plan: SchedulerOutput) -> list[bytes]:
    return [item.digest for item in plan.media_encoded]


def run(world: World) -> list[SchedulerOutput]:
    plans = []
    while world.scheduler.has_work:
        plans.append(world.step())
    return plans


def test_equal_items_are_encoded_once() -> None:
    seen = world()
    for request_id in range(1, 4):
        add(seen, request_id, 10 + request_id, image(request_id, 6, b"a"), max_tokens=3)
    assert [digest for plan in run(seen) for digest in encoded(plan)] == [b"a"]
    add(seen, 9, 12, image(4, 6, b"a"))
    assert not any(map(encoded, run(seen)))
    stats = seen.scheduler.stats()
    assert (stats.media_queries, stats.media_hits, stats.media_rows_encoded, stats.media_rows_used) == (4, 3, 6, 6)


def test_a_step_encodes_no_more_rows_than_it_may_and_chunks_end_before_the_next_item() -> None:
    seen = world()
    add(seen, 1, 24, image(2, 5, b"a"), image(9, 5, b"b"), image(16, 5, b"c"))
    plans = run(seen)
    assert [encoded(plan) for plan in plans[:3]] == [[b"a"], [b"b"], [b"c"]]
    assert [plan.num_scheduled_tokens for plan in plans[:3]] == [{0: 9}, {0: 7}, {0: 8}]


def test_an_item_larger_than_all_room_has_a_step_to_itself() -> None:
    seen = world()
    add(seen, 1, 30, image(1, 20, b"a"), image(22, 3, b"b"))
    assert [encoded(plan) for plan in run(seen) if encoded(plan)] == [[b"a"], [b"b"]]


def test_rows_that_are_being_read_stay_and_the_least_recent_go_first() -> None:
    seen = world(max_num_batched_tokens=8, media_step_rows=16)
    add(seen, 1, 20, image(1, 12, b"a"))  # two chunks read it
    add(seen, 2, 12, image(1, 8, b"b"))  # 20 rows are more than the worker keeps
    plans = run(seen)
    assert [encoded(plan) for plan in plans if encoded(plan)] == [[b"a"], [b"b"]]
    dropped = [plan.media_dropped for plan in plans if plan.media_dropped]
    assert dropped == [[b"a"]] and seen.executor.media == {b"b"}
    assert all(outputs[-1].finish_reason == "length" for outputs in seen.outputs.values())


def test_rows_that_the_same_prompt_reads_later_make_no_room_for_those_before() -> None:
    seen = world(caching=False)
    for request_id, digest in enumerate((b"a", b"c"), 1):
        add(seen, request_id, 12, image(1, 8, digest))
        run(seen)
    add(seen, 3, 20, image(1, 8, b"b"), image(10, 8, b"a"))
    plan = seen.step()
    assert (encoded(plan), plan.media_dropped) == ([b"b"], [b"c"])
    run(seen)


def test_an_item_of_a_prefix_that_is_in_the_cache_is_not_encoded_again() -> None:
    seen = world(media_cache_rows=8)
    add(seen, 1, 20, image(2, 6, b"a"))
    run(seen)
    add(seen, 2, 12, image(1, 8, b"b"))  # takes the place of its rows
    run(seen)
    add(seen, 3, 20, image(2, 6, b"a"))
    assert not any(map(encoded, run(seen)))


def test_a_preempted_request_finds_its_rows_or_has_them_encoded_again() -> None:
    seen = world(num_kv_blocks=9, caching=False)
    for request_id in (1, 2):
        add(seen, request_id, 10, image(1, 6, bytes([request_id])), max_tokens=12)
    run(seen)
    assert seen.scheduler.stats().num_preemptions > 0
    assert all(outputs[-1].finish_reason == "length" for outputs in seen.outputs.values())


def test_what_was_held_is_free_when_a_request_is_aborted() -> None:
    seen = world(max_num_batched_tokens=4)
    add(seen, 1, 20, image(1, 14, b"a"))
    seen.step()
    seen.scheduler.abort([1])
    add(seen, 2, 20, image(1, 12, b"b"))
    run(seen)
    assert seen.executor.media == {b"b"}


def test_what_a_failed_step_was_to_encode_is_encoded_again() -> None:
    seen = world()
    add(seen, 1, 12, image(1, 6, b"a"))
    plan = seen.scheduler.schedule()
    assert encoded(plan) == [b"a"]
    seen.scheduler.fail_step(plan, "broken")
    add(seen, 2, 12, image(1, 6, b"a"))
    assert [encoded(each) for each in run(seen) if encoded(each)] == [[b"a"]]


def test_a_prompt_that_is_not_chunked_is_encoded_in_its_step() -> None:
    seen = world(chunked=False)
    add(seen, 1, 30, image(1, 12, b"a"), image(14, 12, b"b"))
    assert encoded(seen.step()) == [b"a", b"b"]
    run(seen)


def test_spans_that_see_each_other_are_never_cut() -> None:
    seen = world(media_stays_whole=True, max_num_batched_tokens=10, media_step_rows=32, media_cache_rows=64)
    prompt = (image(6, 7, b"a"), image(14, 9, b"b"))
    add(seen, 1, 27, *prompt)
    assert [plan.num_scheduled_tokens for plan in run(seen)[:4]] == [{0: 6}, {0: 8}, {0: 10}, {0: 3}]
    seen.outputs.clear()
    add(seen, 2, 20, image(6, 7, b"a"), image(14, 4, b"c"))  # 12 tokens are the same, up to within the first image
    run(seen)
    assert seen.outputs[2][0].num_cached_tokens == 4
    refused = add(seen, 3, 20, image(1, 11, b"c"))
    assert refused.finish_reason == "error" and "11 tokens" in refused.error


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ((MediaItem("audio", b"", {}, ((1, 2),)),), "audio"),
        ((MediaItem("image", b"", {}, ()),), "in order"),
    ],
)
def test_media_that_cannot_be_read_are_refused(media: tuple[MediaItem, ...], message: str) -> None:
    refused = add(world(), 1, 10, *media)
    assert refused.finish_reason == "error" and message in refused.error
