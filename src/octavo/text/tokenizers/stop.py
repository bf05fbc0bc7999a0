"""Stop strings, found while text arrives in pieces of any size.

Law: the match is the one that ends first in the text, however the text is cut into pieces; of several that end
at the same character the one listed first wins. So a match is known the moment its last character is, and never
taken back for a longer one. The text is cut where the match begins, or where it ends with `include`.

Text is passed on as soon as it cannot be part of a match. Each stop string is followed by the automaton of
Knuth, Morris and Pratt, which costs a few steps a character for any stop strings, hostile ones too.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """The matcher of one sample. Push only text that may match: text before `min_tokens` goes around it."""

    __slots__ = ("_fails", "_firsts", "_held", "_include", "_lengths", "_matched", "_states", "_stops")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """`stops` are not empty strings. With `include` the stop string stays in the text."""
        self._stops = tuple(stops)
        self._include = include
        self._fails = [_failures(stop) for stop in self._stops]
        self._lengths = [len(stop) for stop in self._stops]
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._states = [0] * len(self._stops)  # characters of each stop that the text so far ends with
        self._held = ""  # the end of the text, as long as the largest state; empty with `include`
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """(text to pass on, the stop string that matched or None). Nothing is passed on after a match."""
        if self._matched is not None:
            return "", self._matched
        if self._firsts.isdisjoint(text) and not any(self._states):
            return text, None
        end = self._advance(text)
        if end is not None:
            return self._cut(text, end), self._matched
        if self._include:
            return text, None
        whole = self._held + text
        cut = len(whole) - max(self._states)
        self._held = whole[cut:]
        return whole[:cut], None

    def finish(self) -> str:
        """The text that was held back, when no more follows. Empty after a match."""
        held, self._held = self._held, ""
        return held

    def _advance(self, text: str) -> int | None:
        """Feed the automata. The number of characters up to the end of the first match, or None."""
        states, lengths = self._states, self._lengths
        for end, char in enumerate(text, 1):
            for i, stop in enumerate(self._stops):
                state = states[i]
                while state and stop[state] != char:
                    state = self._fails[i][state]
                if stop[state] == char:
                    state += 1
                    if state == lengths[i]:
                        self._matched = stop
                        return end
                states[i] = state
        return None

    def _cut(self, text: str, end: int) -> str:
        """The text to pass on when a match ends after `end` characters of `text`."""
        if self._include or self._matched is None:
            return text[:end]
        whole = self._held + text
        begin = len(self._held) + end - len(self._matched)
        self._held = ""
        return whole[:begin]


def _failures(stop: str) -> list[int]:
    """For n characters matched, the longest shorter match that the text also ends with; index n < len(stop)."""
    fails = [0] * len(stop)
    state = 0
    for n in range(1, len(stop)):
        fails[n] = state
        while state and stop[state] != stop[n]:
            state = fails[state]
        if stop[state] == stop[n]:
            state += 1
    return fails
