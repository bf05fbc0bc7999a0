"""Groups of layers with a block table each, and how many blocks a sequence holds in them."""

from __future__ import annotations

import pytest

from octavo.cache.spec import (
    UNLIMITED,
    FullKV,
    LayerKV,
    WindowKV,
    cache_groups,
    capacity_tokens,
    first_needed_block,
    max_sequence_blocks,
)

ALL, NEAR = FullKV(), WindowKV(512)


def layers(pattern: str) -> list[LayerKV]:
    return [ALL if letter == "f" else NEAR for letter in pattern]


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [
        ("f" * 30, [30]),  # without windows all layers share one table
        ("s" * 32, [32]),
        ("sssssf" * 3, [3, 3, 3, 3, 3, 3]),  # Gemma 3, 270M
        ("sssssf" * 4 + "ss", [4, 4, 4, 4, 4, 4, 2]),  # 1B
        ("sf" * 13, [13, 13]),  # Gemma 2
        ("f" + "s" * 31, [1, 31]),  # never so many groups as layers
    ],
)
def test_groups_have_equally_many_layers_of_one_kind_each(pattern: str, sizes: list[int]) -> None:
    kinds = layers(pattern)
    groups = cache_groups(kinds)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(len(kinds)))
    assert all(kinds[layer] == group.kind for group in groups for layer in group.layers)
    assert [group.window for group in groups] == sorted(group.window for group in groups)
    if pattern[0] != "f" or len(set(pattern)) == 1:
        assert [len(group.layers) for group in groups] == sizes
    assert len(groups) <= 8


@pytest.mark.parametrize(
    ("pattern", "sizes", "groups"),
    [
        ("ffff", [4, 1, 2, 4], [(0, 1, 2, 3)]),  # one table, whatever they keep
        ("sf" * 4, [1, 2] * 4, [(1, 3), (5, 7), (0, 2, 4, 6)]),
        ("sssf" * 2, [2, 2, 2, 1] * 2, [(3, 7), (0,), (1,), (2,), (4,), (5,), (6,)]),
    ],
)
def test_layers_that_keep_less_of_a_token_are_more_to_a_group(
    pattern: str, sizes: list[int], groups: list[tuple[int, ...]]
) -> None:
    assert [group.layers for group in cache_groups(layers(pattern), sizes)] == groups


def test_the_first_needed_block_is_the_one_with_the_oldest_key_that_the_next_token_sees() -> None:
    for window in (1, 3, 4, 5, 16):
        for num_tokens in range(60):
            oldest = max(0, num_tokens - window + 1)
            assert first_needed_block(window, num_tokens, 4) == oldest // 4
    assert first_needed_block(0, 50, 4) == 0


def test_a_window_bounds_what_a_long_sequence_holds() -> None:
    """Gemma 3 270M at 8,192 tokens: 2,151 blocks of a layer instead of 9,216."""
    windows = [group.window for group in cache_groups(layers("sssssf" * 3))]
    assert max_sequence_blocks(windows, 8192, 16, 128) == 512 + 5 * 41
    assert 3 * max_sequence_blocks(windows, 8192, 16, 128) == 2151
    assert max_sequence_blocks(windows, 160, 16, 128) == 60  # a short one holds what it held
    assert max_sequence_blocks([0], 8192, 16, 128) == 512


@pytest.mark.parametrize("windows", [(0,), (0, 40), (0, 0, 7), (40,), (9, 60)])
def test_capacity_is_the_longest_sequence_that_fits(windows: tuple[int, ...]) -> None:
    for num_blocks in range(40):
        room = capacity_tokens(windows, num_blocks, 4, 8)
        assert room == UNLIMITED or room % 4 == 0
        assert max_sequence_blocks(windows, min(room, 10**6), 4, 8) <= num_blocks
        if room != UNLIMITED:
            assert max_sequence_blocks(windows, room + 1, 4, 8) > num_blocks
    assert (capacity_tokens(windows, 100, 4, 8) == UNLIMITED) == (0 not in windows)
