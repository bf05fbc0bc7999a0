"""What a block's keys and values depend on beside its tokens: media and adapters are part of its key."""

from __future__ import annotations

from typing import Any

import pytest

from core.test_scheduler import World
from octavo.base.params import SamplingParams
from octavo.wire.messages import AddRequest, MediaSpan

PROMPT = [*range(8), *[49] * 8, *range(10, 20)]  # blocks of 4: two of text, two of an image, two and a half of text
IMAGE = MediaSpan(8, 8, b"a", "image")


def num_hits(first: dict[str, Any], second: dict[str, Any], tokens: list[int] = PROMPT) -> int:
    """Tokens of the second request that come from the blocks of the first."""
    world = World()
    for request_id, fields in enumerate((first, second), 1):
        world.scheduler.add(AddRequest(request_id, tokens, SamplingParams(max_tokens=1), **fields))
        world.run()
    return world.outputs[2][0].num_cached_tokens


def spans(*spans: MediaSpan) -> dict[str, Any]:
    return {"spans": spans}


def test_equal_media_share_all_blocks() -> None:
    assert num_hits(spans(IMAGE), spans(IMAGE)) == 24
    assert num_hits({}, {}) == 24


@pytest.mark.parametrize(
    "other",
    [
        MediaSpan(8, 8, b"b", "image"),
        MediaSpan(8, 8, b"a", "audio"),
        MediaSpan(8, 9, b"a", "image"),
        MediaSpan(7, 9, b"a", "image"),
        None,
    ],
    ids=["digest", "kind", "length", "start", "text alone"],
)
def test_other_media_share_the_text_before_them(other: MediaSpan | None) -> None:
    start = 8 if other is None else other.start // 4 * 4
    assert num_hits(spans(IMAGE), spans(other) if other else {}) == start
    assert num_hits(spans(other) if other else {}, spans(IMAGE)) == start


def test_the_second_of_two_media_counts_from_its_first_block_on() -> None:
    first, second = MediaSpan(8, 4, b"a", "image"), MediaSpan(13, 2, b"b", "image")
    other = MediaSpan(13, 2, b"c", "image")
    assert num_hits(spans(first, second), spans(first, other)) == 12
    assert num_hits(spans(first, second), spans(first, second)) == 24


def test_a_block_within_a_span_knows_which_part_of_it_it_holds() -> None:
    """The same tokens after the same text, of another part of the same image."""
    tokens = [49] * 26
    assert num_hits(spans(MediaSpan(0, 20, b"a", "image")), spans(MediaSpan(1, 20, b"a", "image")), tokens) == 0


def test_adapters_share_nothing() -> None:
    assert num_hits({"adapter": "a"}, {"adapter": "a"}) == 24
    assert num_hits({"adapter": "a"}, {"adapter": "b"}) == 0
    assert num_hits({"adapter": "a"}, {}) == 0
    assert num_hits({"adapter": "a", **spans(IMAGE)}, {"adapter": "b", **spans(IMAGE)}) == 0
    assert num_hits({"adapter": "a"}, {"adapter": "a", **spans(IMAGE)}) == 8
    assert num_hits({"adapter": "a"}, {"cache_salt": "a"}) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        spans(MediaSpan(-1, 2, b"", "image")),
        spans(MediaSpan(3, 0, b"", "image")),
        spans(MediaSpan(20, 7, b"", "image")),
        spans(MediaSpan(8, 4, b"", "image"), MediaSpan(11, 2, b"", "image")),
        spans(MediaSpan(8, 4, b"", "image"), MediaSpan(2, 2, b"", "image")),
    ],
)
def test_spans_that_are_not_within_the_prompt_are_refused(wrong: dict[str, Any]) -> None:
    output = World().scheduler.add(AddRequest(1, PROMPT, SamplingParams(max_tokens=1), **wrong))
    assert output is not None and output.finish_reason == "error" and "media" in (output.error or "")
