"""What happens to a text before the tokenizers library sees it, where the library has no exact way to say it.

SentencePiece replaces characters by a map of its own (usually close to NFKC): at each place the longest key of the map
that stands there. The library applies such a map to grapheme clusters, which gives other ids for rare texts. And
SentencePiece puts its dummy prefix before any text, the library's `Metaspace` only before one that does not begin with
a space.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from octavo.text.tokenizers.decoder_plan import SPACE

#: Where the dummy prefix stands: before the whole text, or before each of its parts between special tokens.
Prefix = Literal["none", "first", "every"]

_SPACES: Final = re.compile(" {2,}")
_MAX_KEYS: Final = 1 << 20
_MAX_KEY_BYTES: Final = 64
_LEAF: Final = 1 << 8
_LABEL: Final = 1 << 31 | 0xFF
_VALUE: Final = (1 << 31) - 1


def read_character_map(blob: bytes) -> dict[str, str]:
    """The character map of a SentencePiece file as key -> text. Raises `ValueError` for a damaged one.

    u32 bytes of the trie | the trie, a double array of u32 | the texts, each with a NUL behind it
    """
    if len(blob) < 4:
        raise ValueError("the character map is cut short")
    (size,) = struct.unpack_from("<I", blob)
    if size % 4 or not 4 <= size <= len(blob) - 4:
        raise ValueError("the trie of the character map passes its end")
    units = struct.unpack_from(f"<{size // 4}I", blob, 4)
    texts = blob[4 + size :]
    # A unit's label is the byte that leads to it: its place, XOR the label, is where its parent's children are.
    children: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, unit in enumerate(units):
        label = unit & _LABEL
        if 0 < label < 256:
            children[place ^ label].append((label, place))
    found: dict[str, str] = {}
    waiting = [(b"", _offset(units[0]))]
    while waiting:
        prefix, base = waiting.pop()
        for label, place in children.get(base, ()):
            key, unit = prefix + bytes([label]), units[place]
            below = place ^ _offset(unit)
            if len(key) > _MAX_KEY_BYTES or len(found) > _MAX_KEYS or len(waiting) > _MAX_KEYS:
                raise ValueError("the trie of the character map has no end")
            if unit & _LEAF:
                if below >= len(units):
                    raise ValueError("the trie of the character map points outside")
                found[key.decode("utf-8")] = _text_at(texts, units[below] & _VALUE)
            waiting.append((key, below))
    return found


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


def _text_at(texts: bytes, begin: int) -> str:
    end = texts.find(b"\0", begin)
    if end < 0:
        raise ValueError("a text of the character map passes its end")
    return texts[begin:end].decode("utf-8")


class Preparation:
    """What SentencePiece does to a text first. Call it; it is never changed, so that threads may share it."""

    def __init__(
        self,
        character_map: Mapping[str, str] | None = None,
        *,
        prefix: Prefix = "none",
        remove_extra_spaces: bool = False,
        special: Iterable[str] = (),
        whole: Iterable[str] = (),
    ) -> None:
        """`prefix`: where SPACE is put before a text. `special`: tokens between which the parts of a text are prepared
        one by one. `whole`: further tokens that are found whole, and whose characters stay."""
        self._map = dict(character_map or {})
        self._longest = max(map(len, self._map), default=0)
        self._runs = _runs_pattern(self._map)
        self._prefix = prefix
        self._removes = remove_extra_spaces
        self._special = _any_of(special)
        self._kept = _any_of(token for token in whole if self._mapped(token) != token)

    @property
    def may_shrink(self) -> bool:
        """Whether a text can lose bytes."""
        return bool(self._map) or self._removes

    def __call__(self, text: str) -> str:
        if self._special is None:
            return self._part(text, is_first=True)
        parts = self._special.split(text)  # those at odd places are tokens
        return "".join(part if i % 2 else self._part(part, is_first=i == 0) for i, part in enumerate(parts))

    def _part(self, text: str, is_first: bool) -> str:
        if self._kept is None:
            text = self._mapped(text)
        else:
            parts = self._kept.split(text)
            text = "".join(part if i % 2 else self._mapped(part) for i, part in enumerate(parts))
        if self._removes:
            text = _SPACES.sub(" ", text.strip(" "))
        is_prefixed = self._prefix == "every" or (self._prefix == "first" and is_first)
        return SPACE + text if text and is_prefixed else text

    def _mapped(self, text: str) -> str:
        return text if self._runs is None else self._runs.sub(self._map_run, text)

    def _map_run(self, match: re.Match[str]) -> str:
        run, pos, out = match.group(), 0, []
        while pos < len(run):
            for end in range(min(len(run), pos + self._longest), pos, -1):
                text = self._map.get(run[pos:end])
                if text is not None:
                    out.append(text)
                    pos = end
                    break
            else:
                out.append(run[pos])
                pos += 1
        return "".join(out)


def _runs_pattern(character_map: Mapping[str, str]) -> re.Pattern[str] | None:
    """Where keys may be. No key reaches past the end of a match: all that may follow its first character is in it."""
    if not character_map:
        return None
    several = [key for key in character_map if len(key) > 1]
    rest = _one_of({char for key in several for char in key[1:]})
    alternatives = [_one_of({key[0] for key in several}) + rest + "+"] if several else []
    single = {key for key in character_map if len(key) == 1}
    if single:
        alternatives.append(_one_of(single) + (rest + "*" if several else ""))
    return re.compile("|".join(alternatives))


def _one_of(characters: Iterable[str]) -> str:
    return "[" + "".join(map(re.escape, sorted(characters))) + "]"


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """The longest of the tokens that stands at a place, as a group."""
    ordered = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None
