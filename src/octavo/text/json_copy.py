"""JSON copied while a model writes it: what is passed on is at every moment the beginning of one valid JSON value.

The copy is verbatim where the text is JSON, blanks and spelling of numbers and escapes included. Slips that have one
reading are mended in passing: line breaks and other control characters in strings, backslashes before characters that
need none, strings in single quotes, keys without quotes, Python's True, False and None, commas before a closing
bracket. Anything else raises `Malformed`; `completion` then says what makes a whole value of the beginning.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Final

from octavo.text.source import BLANKS, Malformed, Source, Steps, Unfinished

#: Characters of a number or a word; more are no value of anybody's.
MAX_LEXEME: Final = 1000
#: Brackets within brackets; readers of JSON, Python's among them, give up at about a thousand.
MAX_DEPTH: Final = 500
_PLAIN: Final = {
    '"': re.compile(r'[^"\\\x00-\x1f]+'),
    "'": re.compile(r"""[^"'\\\x00-\x1f]+"""),
}
_LEXEME: Final = re.compile(r"[A-Za-z0-9_+.$-]+")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BEGUN_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?")
_LOOSE_NUMBER: Final = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?([eE][+-]?[0-9]+)?")
_BARE_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_BLANKS: Final = re.compile(r"[ \t\r\n]+")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{4}")
_WORDS: Final = {
    **{word: word for word in ("true", "false", "null")},
    "True": "true", "False": "false",
    **dict.fromkeys(("None", "NaN", "nan", "Infinity", "-Infinity", "inf", "-inf", "undefined"), "null"),
}  # fmt: skip


class JsonCopy:
    """One value. `emit` gets the copy piece by piece; `run` does the work and may be called once.

    `limit`: characters of a string; a longer one is malformed.
    """

    __slots__ = ("_closers", "_emit", "_expects", "_held", "_is_key", "_limit", "_quote", "is_begun")

    def __init__(self, emit: Callable[[str], None], limit: int = sys.maxsize) -> None:
        self._emit = emit
        self._limit = limit
        self._closers: list[str] = []  # brackets that are due, innermost last
        #: "value", "item" (a value or the end of a list), "key" (or the end of an object), "colon", "next"
        self._expects = "value"
        self._held = ""  # a comma that nothing has followed yet, with the blanks after it
        self._quote = ""  # of the string that is being copied
        self._is_key = False  # it is a key
        self.is_begun = False  # something was emitted

    def run(self, source: Source) -> Steps[None]:
        """Copy one value, which begins where the source stands. Raises `Malformed`, `Unfinished`."""
        while True:
            yield from self._hold_blanks(source)
            char = yield from source.peek()
            if not char:
                raise Unfinished
            expects = self._expects
            if char in "\"'" and expects in ("value", "item", "key"):
                yield from self._string(source)
            elif expects in ("value", "item") and char in "{[":
                if len(self._closers) == MAX_DEPTH:
                    raise Malformed
                self._put(source.take(1))
                self._closers.append("}" if char == "{" else "]")
                self._expects = "key" if char == "{" else "item"
                continue
            elif expects in ("item", "key", "next") and self._closers and char == self._closers[-1]:
                source.take(1)
                self._held = self._held[1:]  # without the comma
                self._put(self._closers.pop())
            elif expects == "next" and char == ",":
                self._held += source.take(1)
                self._expects = "key" if self._closers[-1] == "}" else "item"
                continue
            elif expects == "colon" and char == ":":
                self._put(source.take(1))
                self._expects = "value"
                continue
            elif expects == "key":
                yield from self._bare_key(source)
                continue
            elif expects in ("value", "item"):
                yield from self._word(source)
            else:
                raise Malformed
            if expects == "key" and self._is_key:
                self._is_key, self._expects = False, "colon"
            elif self._closers:
                self._expects = "next"
            else:
                return

    def completion(self) -> str:
        """What makes a whole value of that which was emitted."""
        text = ""
        if self._quote:
            text = '"' if not self._is_key else '":null'
        elif self._expects == "colon":
            text = ":null"
        elif self._expects == "value":
            text = "null"
        return text + "".join(reversed(self._closers))

    # ------------------------------------------------------------ pieces
    def _put(self, text: str) -> None:
        self.is_begun = True
        self._emit(self._held + text)
        self._held = ""

    def _hold_blanks(self, source: Source) -> Steps[None]:
        """Blanks inside the value are part of the copy; those after a comma wait with it."""
        while True:
            blanks = source.run(_BLANKS)
            if self._held:
                self._held = (self._held + blanks)[:MAX_LEXEME]
            elif blanks and self.is_begun:
                self._emit(blanks)
            char = yield from source.peek()
            if not char or char not in BLANKS:
                return

    def _string(self, source: Source) -> Steps[None]:
        self._is_key = self._expects == "key"
        quote = source.take(1)
        self._put('"')
        self._quote = quote
        plain = _PLAIN[quote]
        end = source.num_consumed + self._limit
        while True:
            # However the text was cut: no more is consumed than one character too many.
            if text := source.run(plain, end + 1 - source.num_consumed):
                self._emit(text)
            if source.num_consumed > end:
                raise Malformed
            char = yield from source.peek()
            if not char:
                raise Unfinished
            if char == quote:
                source.take(1)
                self._quote = ""
                self._emit('"')
                return
            if char == "\\":
                yield from self._escape(source)
            elif char == '"':
                source.take(1)
                self._emit('\\"')
            elif char < " ":
                self._emit(json.dumps(source.take(1))[1:-1])

    def _escape(self, source: Source) -> Steps[None]:
        pair = yield from source.peek(2)
        if len(pair) < 2:
            raise Unfinished
        if pair[1] in '"\\/bfnrt':
            self._emit(source.take(2))
        elif pair[1] == "u":
            text = yield from source.peek(6)
            if _HEX.fullmatch(text, 2):
                self._emit(source.take(6))
            elif len(text) < 6:
                raise Unfinished
            else:
                source.take(1)
                self._emit("\\\\")
        elif pair[1] == "'":
            self._emit(source.take(2)[1])
        else:
            source.take(1)
            if pair[1] >= " ":  # before a line break it means nothing
                self._emit("\\\\")

    def _bare_key(self, source: Source) -> Steps[None]:
        key = yield from source.peek_run(_LEXEME, MAX_LEXEME)
        if not _BARE_KEY.fullmatch(key):
            raise Malformed
        source.take(len(key))
        if source.is_truncated and source.is_at_end:
            raise Unfinished
        self._put(f'"{key}"')
        self._expects = "colon"

    def _word(self, source: Source) -> Steps[None]:
        text = yield from source.peek_run(_LEXEME, MAX_LEXEME)
        value = text if _NUMBER.fullmatch(text) else _WORDS.get(text) or mended_number(text)
        is_last = len((yield from source.peek(len(text) + 1))) == len(text)
        if is_last and source.is_truncated and _begins_value(text):
            value = text
        if value is None:
            raise Unfinished if is_last else Malformed
        source.take(len(text))
        self._put(value)


def _begins_value(text: str) -> bool:
    return bool(_BEGUN_NUMBER.fullmatch(text)) or any(word.startswith(text) for word in ("true", "false", "null"))


def mended_number(text: str) -> str | None:
    """A number that JSON would write otherwise: +1, 007, .5, 1."""
    found = _LOOSE_NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, whole, fraction, exponent = found.groups()
    if not whole and not fraction:
        return None
    whole = whole.lstrip("0") or "0"
    return ("-" if sign == "-" else "") + whole + (f".{fraction}" if fraction else "") + (exponent or "")
