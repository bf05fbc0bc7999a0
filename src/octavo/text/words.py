"""Which words tokens make, and when each was said: from how much each token's row looks at each moment of the sound.

token     | <0.00>   The  New  York  <2.00>
moments   |    ######                          the path through the matrix along which they look most,
          |           ####                     that goes forward in tokens and moments alike
          |               #######
"""

from __future__ import annotations

import codecs
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np

#: Languages that put nothing between words: each character is one.
_WITHOUT_SPACES: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
#: Signs that belong to the word behind them, and to the word before.
_OPENING: Final = frozenset("\"'“¿([{-")
_CLOSING: Final = frozenset("\"'.。,，!！?？:：”)]}、")  # noqa: RUF001
#: Where each of the three ways to a place of the path comes from: tokens and moments back.
_STEPS: Final = ((1, 1), (1, 0), (0, 1))


@dataclass(slots=True)
class Word:
    """From `start` to `end`, in seconds."""

    word: str  # with the space in front of it
    start: float
    end: float


@dataclass(slots=True)
class TimedToken:
    token_id: int
    start: float
    end: float


def first_moments(looks: np.ndarray) -> np.ndarray:
    """int64 [tokens]: the moment at which the path of each token begins. `looks` float32 [tokens, moments]."""
    import numpy as np  # with the first sound

    costs = -looks.astype(np.float64)
    num_tokens, num_moments = costs.shape
    # Places of equal sum of both indices depend on none of each other: one after the other, each sum at once. Of place
    # (i, j) the row is i + j and the column i; what lies outside costs infinitely much.
    skewed = np.full((num_tokens + num_moments + 1, num_tokens + 1), np.inf, np.float32)
    ways = np.full(skewed.shape, 2, np.int8)
    skewed[0, 0] = 0.0
    for total in range(2, num_tokens + num_moments + 1):
        tokens = np.arange(max(1, total - num_moments), min(num_tokens, total - 1) + 1)
        both = skewed[total - 2, tokens - 1]
        token, moment = skewed[total - 1, tokens - 1], skewed[total - 1, tokens]
        way = np.where((both < token) & (both < moment), 0, np.where((token < both) & (token < moment), 1, 2))
        before = np.choose(way, (both, token, moment))
        skewed[total, tokens] = costs[tokens - 1, total - tokens - 1] + before
        ways[total, tokens] = way
    firsts = np.zeros(num_tokens, np.int64)
    i, j = num_tokens, num_moments
    while i > 0:
        firsts[i - 1] = max(j - 1, 0)
        down, back = _STEPS[ways[i + j, i]] if j else (1, 0)
        i, j = i - down, j - back
    return firsts


def words_of(tokens: Sequence[TimedToken], bytes_of: Callable[[int], bytes], language: str | None) -> list[Word]:
    """The words of a text: what begins with a space, or with a sign; where a language has no spaces, each character."""
    words: list[Word] = []
    for text, own in _characters(tokens, bytes_of):
        is_sign = all(each in string.punctuation for each in text.strip())
        if not words or text.startswith(" ") or is_sign or language in _WITHOUT_SPACES:
            words.append(Word(text, own[0].start, own[-1].end))
        else:
            words[-1].word += text
            words[-1].end = own[-1].end
    return _with_signs(words)


def _with_signs(words: list[Word]) -> list[Word]:
    """Signs are no words: those that open something belong to the word behind them, others to the word before."""
    joined: list[Word] = []
    for word in reversed(words):
        if joined and word.word.startswith(" ") and word.word.strip() in _OPENING:
            joined[-1] = Word(word.word + joined[-1].word, joined[-1].start, joined[-1].end)
        else:
            joined.append(word)
    words, joined = joined[::-1], []
    for word in words:
        if joined and word.word in _CLOSING:
            joined[-1].word += word.word
        else:
            joined.append(word)
    return joined


def _characters(
    tokens: Sequence[TimedToken], bytes_of: Callable[[int], bytes]
) -> Iterator[tuple[str, list[TimedToken]]]:
    """Runs of tokens, as short as whole characters allow."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, own = "", []
    for token in tokens:
        text += decoder.decode(bytes_of(token.token_id))
        own.append(token)
        if not decoder.getstate()[0]:
            if text:
                yield text, own
            text, own = "", []
    if own:
        yield text + decoder.decode(b"", final=True), own
