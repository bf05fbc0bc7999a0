"""What a block's keys and values depend on beside its tokens: media and adapters are part of its key."""

from __future__ import annotations

from typing import Any

import pytest

from core.test_scheduler import World
from octavo.base.media import MediaItem, MediaKind
from octavo.base.params import SamplingParams
from octavo.wire.messages import AddRequest

PROMPT = [*range(8), *[49] * 8, *range(10, 20)]  # blocks of 4: two of text, two of an image, two and a half of text


def item(start: int, length: int, digest: bytes, kind: MediaKind = "image") -> MediaItem:
    return MediaItem(kind, digest, {}, ((start, length),))


IMAGE = item(8, 8, b"a")
SEEING: dict[str, Any] = {
    "media_kinds": ("image", "audio"), "media_step_rows": 32, "media_cache_rows": 32, "max_loras": 2,
}  # fmt: skip


def num_hits(first: dict[str, Any], second: dict[str, Any], tokens: list[int] = PROMPT) -> int:
    """Tokens of the second request that come from the blocks of the first."""
    world = World(**SEEING)
    for request_id, fields in enumerate((first, second), 1):
        world.scheduler.add(AddRequest(request_id, tokens, SamplingParams(max_tokens=1), **fields))
        world.run()
    return world.outputs[2][0].num_cached_tokens


def media(*items: MediaItem) -> dict[str, Any]:
    return {"media": items}


def test_equal_media_share_all_blocks() -> None:
    assert num_hits(media(IMAGE), media(IMAGE)) == 24
    assert num_hits({}, {}) == 24


@pytest.mark.parametrize(
    "other",
    [
        item(8, 8, b"b"),
        item(8, 8, b"a", "audio"),
        item(8, 9, b"a"),
        item(7, 9, b"a"),
        None,
    ],
    ids=["digest", "kind", "length", "start", "text alone"],
)
def test_other_media_share_the_text_before_them(other: MediaItem | None) -> None:
    start = 8 if other is None else other.offset // 4 * 4
    assert num_hits(media(IMAGE), media(other) if other else {}) == start
    assert num_hits(media(other) if other else {}, media(IMAGE)) == start


def test_the_second_of_two_media_counts_from_its_first_block_on() -> None:
    first, second = item(8, 4, b"a"), item(13, 2, b"b")
    other = item(13, 2, b"c")
    assert num_hits(media(first, second), media(first, other)) == 12
    assert num_hits(media(first, second), media(first, second)) == 24


def test_a_block_within_a_span_knows_which_part_of_it_it_holds() -> None:
    """The same tokens after the same text, of another part of the same image."""
    tokens = [49] * 26
    assert num_hits(media(item(0, 20, b"a")), media(item(1, 20, b"a")), tokens) == 0


def test_adapters_share_nothing() -> None:
    assert num_hits({"adapter": "a"}, {"adapter": "a"}) == 24
    assert num_hits({"adapter": "a"}, {"adapter": "b"}) == 0
    assert num_hits({"adapter": "a"}, {}) == 0
    assert num_hits({"adapter": "a", **media(IMAGE)}, {"adapter": "b", **media(IMAGE)}) == 0
    assert num_hits({"adapter": "a"}, {"adapter": "a", **media(IMAGE)}) == 8
    assert num_hits({"adapter": "a"}, {"cache_salt": "a"}) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        media(item(-1, 2, b"")),
        media(item(3, 0, b"")),
        media(item(20, 7, b"")),
        media(item(8, 4, b""), item(11, 2, b"")),
        media(item(8, 4, b""), item(2, 2, b"")),
    ],
)
def test_spans_that_are_not_within_the_prompt_are_refused(wrong: dict[str, Any]) -> None:
    output = World(**SEEING).scheduler.add(AddRequest(1, PROMPT, SamplingParams(max_tokens=1), **wrong))
    assert output is not None and output.finish_reason == "error" and "media" in (output.error or "")


@pytest.mark.parametrize("step", [1e6, -100.0, float("inf"), float("nan")])
def test_a_video_whose_times_have_no_positions_is_refused(step: float) -> None:
    """How long it is says its file, and whoever made that."""
    video = MediaItem("image", b"a", {}, ((8, 8),), (4, 1, 2), step)
    output = World(**SEEING).scheduler.add(AddRequest(1, PROMPT, SamplingParams(max_tokens=1), media=(video,)))
    assert output is not None and output.finish_reason == "error" and "in time" in (output.error or "")
    short = MediaItem("image", b"a", {}, ((8, 8),), (4, 1, 2), 9.5)
    assert World(**SEEING).scheduler.add(AddRequest(1, PROMPT, SamplingParams(max_tokens=1), media=(short,))) is None
