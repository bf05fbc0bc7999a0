"""The tokens of a text that a grammar dictates, as the model's own tokenizer would most likely have written them.

The engine has no tokenizer, but the bytes of the vocabulary say nearly as much: BPE numbers its tokens in the order in
which its training made them, so to merge, again and again, the two neighbours whose union has the lowest id is what
the tokenizer does. It first cuts a text into words; of those cuts too the vocabulary tells, by having no token across
them, but for one (`_cut`). Whatever the tokenizer is, the tokens make up the text; where it would have written others,
the model reads a spelling that is less usual, and nothing worse.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Final

_LETTER, _DIGIT, _SPACE, _MARK = range(4)
#: Of each byte. What is beyond ASCII counts as a letter.
_KIND: Final = bytes(
    _LETTER if i >= 128 or chr(i).isalpha() else _DIGIT if chr(i).isdigit() else _SPACE if chr(i).isspace() else _MARK
    for i in range(256)
)
#: Bytes of a text that are looked at: what follows them is another call's.
MAX_BYTES: Final = 256
#: Texts whose tokens are remembered.
_CACHE_ENTRIES: Final = 4096


class Spelling:
    """Built once for a vocabulary; `begin` is deterministic."""

    def __init__(self, tokens: Sequence[bytes], excluded: Collection[int]) -> None:
        """`tokens[i]` is b"" for an id without text; ids in `excluded` are never used."""
        # Of two ids for the same bytes the later one is a piece of text, the earlier one a byte that has no piece.
        self._ids = {token: i for i, token in enumerate(tokens) if token and i not in excluded}
        # Where bytes stand in only for characters that are no piece, merging begins with characters.
        self._by_character = tokens.count(b"e") > 1 or b"\xc3" not in self._ids
        self._cache: dict[bytes, list[int]] = {}

    def begin(self, text: bytes) -> list[int]:
        """The first tokens of a text that begins with `text`: those that do not depend on how it goes on.

        A tokenizer merges what belongs to one word: the tokens that touch the last one are left out.
        """
        text = text[:MAX_BYTES]
        found = self._cache.get(text)
        if found is None:
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.clear()
            found = self._cache[text] = self._begin(text)
        return found

    def _begin(self, text: bytes) -> list[int]:
        end_of_stable = _start_of_last_word(text)
        ids: list[int] = []
        start = 0
        for word in _cut(text):
            for part in self._merge(word):
                start += len(part)
                token_id = self._ids.get(part)
                if start > end_of_stable or token_id is None:
                    return ids
                ids.append(token_id)
        return ids

    def _merge(self, word: bytes) -> list[bytes]:
        """`word` in tokens; a byte that no token stands for stays as it is."""
        ids = self._ids
        parts = [word[i : i + 1] for i in range(len(word))]
        if self._by_character and not word.isascii():
            whole = [
                character.encode("utf-8", "surrogateescape") for character in word.decode("utf-8", "surrogateescape")
            ]
            parts = [part for unit in whole for part in ([unit] if unit in ids else [bytes([b]) for b in unit])]
        while True:
            unions = [(ids.get(a + b), i) for i, (a, b) in enumerate(pairwise(parts))]
            known = [(rank, i) for rank, i in unions if rank is not None]
            if not known:
                return parts
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _cut(text: bytes) -> list[bytes]:
    """Pieces that share no token: of two marks before a letter, neither belongs to it."""
    kinds = text.translate(_KIND)
    pieces, start = [], 0
    for i in range(2, len(text)):
        if kinds[i] == _LETTER and kinds[i - 1] == kinds[i - 2] == _MARK:
            pieces.append(text[start:i])
            start = i
    return [*pieces, text[start:]]


def _start_of_last_word(text: bytes) -> int:
    """Index of the last run of one kind, with the space before it."""
    kinds = text.translate(_KIND)
    start = len(kinds.rstrip(kinds[-1:]))
    while start and kinds[start - 1] == _SPACE:
        start -= 1
    return start
