"""Stop strings: the match that ends first wins, whatever the pieces the text comes in."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.text.tokenizers.stop import StopMatcher

# Few letters, so that stop strings overlap, nest and begin alike.
LETTERS = st.text(alphabet="ab\u00e9", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=6), min_size=1, max_size=4)


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The whole text, what is passed on of it, and the match."""
    ends = [(text.find(stop) + len(stop), i) for i, stop in enumerate(stops) if stop in text]
    if not ends:
        return text, None
    end, i = min(ends)
    return text[:end] if include else text[: end - len(stops[i])], stops[i]


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(LETTERS, STOPS, st.lists(st.integers(min_value=0), max_size=12), st.booleans())
@example("xxabcab", ["abcd", "bc"], [3], False)
@example("aab", ["aab", "ab"], [1, 2], False)
@example("aaaab", ["aaab"], [1, 2, 3, 4], False)
def test_s11_w25_equals_find_on_the_whole_text_for_any_pieces(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include)
    emitted, matched = "", None
    for piece in pieces(text, cuts):
        emit, matched = matcher.push(piece)
        emitted += emit
        if matched is not None:
            break
    emitted += matcher.finish()
    assert (emitted, matched) == reference(text, stops, include)


@given(LETTERS, STOPS)
def test_s11_holds_exactly_what_may_still_become_a_match(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted = ""
    for n, char in enumerate(text, 1):
        emit, matched = matcher.push(char)
        emitted += emit
        if matched is not None:
            return
        seen = text[:n]
        held = max(k for stop in stops for k in range(len(stop)) if seen.endswith(stop[:k]))
        assert emitted == seen[: n - held]


@given(LETTERS, STOPS)
def test_text_that_keeps_its_stop_string_is_never_held(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops, include=True)
    emitted = ""
    for n, char in enumerate(text, 1):
        emit, matched = matcher.push(char)
        emitted += emit
        assert emitted == text[:n]
        if matched is not None:
            return


# Text, stop strings, and what is passed on with the match.
TABLE: list[tuple[str, list[str], str, str | None]] = [
    ("abcabd", ["abd"], "abc", "abd"),  # a false start right before
    ("aaab", ["aab"], "a", "aab"),
    ("ababac", ["abac"], "ab", "abac"),  # overlaps itself
    ("xyz", ["yz", "y"], "x", "y"),  # a prefix of the other ends first
    ("xyz", ["xyz", "z"], "", "xyz"),  # nested, end together: the first listed
    ("xyz", ["z", "xyz"], "xy", "z"),
    ("one END", ["END", "end"], "one ", "END"),
    ("one end", ["END"], "one end", None),  # case counts
    ("almost EN", ["END"], "almost EN", None),  # held to the end, then passed on
    ("\u00e9\u0301x", ["\u0301"], "\u00e9", "\u0301"),  # a combining character by itself
    ("a\U0001f642b", ["\U0001f642"], "a", "\U0001f642"),
    ("a\n\nb", ["\n\n"], "a", "\n\n"),
    ("a\r\nb", ["\n"], "a\r", "\n"),
    ("abc", ["abcd", "c", "bc"], "ab", "c"),
    ("STOP", ["STOP"], "", "STOP"),
    ("", ["x"], "", None),
]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_w25_stops_that_overlap_nest_and_begin_alike(row: Any, size: int) -> None:
    text, stops, expected, match = row
    matcher = StopMatcher(stops)
    passed, found = "", None
    for start in range(0, len(text), size):
        emitted, found = matcher.push(text[start : start + size])
        passed += emitted
        if found is not None:
            break
    assert (passed + matcher.finish(), found) == (expected, match) == reference(text, stops, False)


def test_nothing_follows_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one END two") == ("one ", "END")
    assert matcher.push("three") == ("", "END")
    assert matcher.finish() == ""


def test_s11_of_two_that_end_together_the_first_listed_wins() -> None:
    assert StopMatcher(["bc", "abc"]).push("abc") == ("a", "bc")
    assert StopMatcher(["abc", "bc"]).push("abc") == ("", "abc")


@pytest.mark.timeout(10)
def test_a_hostile_stop_string_costs_no_more_than_its_text() -> None:
    # Naive search would compare 10^10 characters.
    matcher = StopMatcher(["a" * 100_000 + "b"])
    assert matcher.push("a" * 200_000) == ("a" * 100_000, None)
    assert matcher.push("c") == ("a" * 100_000 + "c", None)
