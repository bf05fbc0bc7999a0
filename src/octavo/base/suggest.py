"""The nearest of some names to one that does not exist: for flags, keys, variables, fields, routes and models alike.

A suggestion that is near in letters alone (`tpu` -> `cpu`) is worse than none: whoever reads it takes it for an answer.
So the bound on the edits grows slowly with the length, the first letter counts for more, and a digit is never a slip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[^a-z0-9]+")
_DIGITS = re.compile(r"[0-9]+")
#: Shortest word of which a longer name is taken for the completion.
_MIN_PART = 4
#: Rank of names that contain the word or are shortened to it: behind all that are a few edits away.
_PART = 10
#: Longer words are nobody's slip, and the comparison takes time.
_MAX_CHARS = 200


def suggest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was most likely meant to be; None when none is near. Of equals, the first."""
    if len(word) > _MAX_CHARS:
        return None
    ranked = [(rank, name) for name in names if (rank := _rank(_parts(word), _parts(name))) is not None]
    return min(ranked, key=lambda item: item[0])[1] if ranked else None


def nearest(word: str, names: Iterable[str]) -> str:
    """The text `; did you mean X?` with the name that `suggest` finds, else nothing."""
    found = suggest(word, names)
    return f"; did you mean {found}?" if found is not None else ""


def _parts(name: str) -> list[str]:
    """The words of a name in lower case: case and separators make no difference."""
    return [part for part in _SEPARATORS.split(name.lower()) if part]


def _rank(word_parts: list[str], name_parts: list[str]) -> int | None:
    """How far apart two names are; None: they have nothing to do with each other."""
    word, name = "".join(word_parts), "".join(name_parts)
    if not word or not name:
        return None
    limit = _max_edits(max(len(word), len(name)))
    edits = _num_edits(word, name) if abs(len(word) - len(name)) <= limit else limit + 1
    if edits <= limit and _is_slip(word, name, edits):
        return edits
    if _is_part(word_parts, name_parts) or _is_short_for(word, name):
        return _PART + abs(len(name) - len(word))
    return None


def _max_edits(length: int) -> int:
    """1 up to 7 letters, 2 up to 12, then 3; none where every word is one edit away from every other."""
    if length < 3:
        return 0
    return 1 if length < 8 else 2 if length < 13 else 3


def _is_slip(word: str, name: str, edits: int) -> bool:
    """Whether so few edits are more likely a slip than another word."""
    if edits == 0:
        return True
    digits, others = _DIGITS.findall(word), _DIGITS.findall(name)
    if digits != others and len("".join(digits)) == len("".join(others)):
        return False  # float16 and float32
    if word[0] == name[0]:
        return True
    # The first letter is rarely mistyped, but left out, doubled or swapped with the second.
    is_kept = len(word) != len(name) or sorted(word) == sorted(name)
    return edits == 1 and (is_kept or len(name) > 7)


def _is_part(word: list[str], name: list[str]) -> bool:
    """Whether one is the beginning of the other, or whole words of it: `gpu-memory`, `threads`."""
    short, long = sorted(("".join(word), "".join(name)), key=len)
    if len(short) < _MIN_PART:
        return False
    if long.startswith(short):
        is_whole = short == "".join(word)
        return is_whole or (2 * len(short) > len(long) and not _DIGITS.search(long, len(short)))
    return len(word) < len(name) and name[-len(word) :] == word


def _is_short_for(word: str, name: str) -> bool:
    """`bf16` for `bfloat16`: the same numbers, and letters left out."""
    if word[0] != name[0] or not (digits := _DIGITS.findall(word)) or digits != _DIGITS.findall(name):
        return False
    letters = iter(name)
    return all(char in letters for char in word)


def _num_edits(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that lead from `a` to `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, char in enumerate(a):
        last, before, row = before, row, [i + 1]
        for j, other in enumerate(b):
            cost = min(before[j] + (char != other), before[j + 1] + 1, row[j] + 1)
            if i and j and char == b[j - 1] and a[i - 1] == other:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
    return row[-1]
