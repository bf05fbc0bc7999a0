"""JSON copied while a model writes it: what is passed on is at every moment the beginning of one valid JSON value.

The copy is verbatim where the text is JSON, blanks and spelling of numbers and escapes included. Slips that have one
reading are mended in passing: line breaks and other control characters in strings, backslashes before characters that
need none, strings in single quotes, keys without quotes, Python's True, False and None, numbers that JSON writes
otherwise, commas before a closing bracket, values that are left out (null), brackets that are not closed before an
outer one is, closing brackets that nothing opened. Anything else raises `Malformed`; `completion` then says what makes
a whole value of the beginning.
"""

from __future__ import annotations

import json
import re
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
    """One value. `emit` gets the copy piece by piece; `run` does the work and may be called once."""

    __slots__ = ("_closers", "_emit", "_expects", "_held", "_quote", "is_begun")

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._closers: list[str] = []  # brackets that are due, innermost last
        #: "value", "item" (a value or the end of a list), "key" (or the end of an object), "colon", "next"
        self._expects = "value"
        self._held = ""  # a comma that nothing has followed yet, with the blanks after it
        self._quote = ""  # of the string that is being copied
        self.is_begun = False  # something was emitted

    def run(self, source: Source) -> Steps[None]:
        """Copy one value, which begins where the source stands. Raises `Malformed`, `Unfinished`."""
        while self._closers or self._expects != "next":
            yield from self._hold_blanks(source)
            char = yield from source.peek()
            if not char:
                raise Unfinished
            if char in "}]" and self._closers and self._expects != "colon":
                self._close(source.take(1))
            elif self._expects == "key":
                yield from (self._string(source) if char in "\"'" else self._bare_key(source))
                self._expects = "colon"
            elif self._expects in ("value", "item"):
                yield from self._value(source, char)
            elif char == ":" and self._expects == "colon":
                self._put(source.take(1))
                self._expects = "value"
            elif char == "," and self._expects == "next":
                self._held += source.take(1)
                self._expects = "key" if self._closers[-1] == "}" else "item"
            else:
                raise Malformed

    def completion(self) -> str:
        """What makes a whole value of that which was emitted."""
        text = ""
        if self._quote:
            text = '":null' if self._expects == "key" else '"'
        elif self._expects == "colon":
            text = ":null"
        elif self._expects == "value":
            text = "null"
        return text + "".join(reversed(self._closers))

    # ------------------------------------------------------------ pieces
    def _value(self, source: Source, char: str) -> Steps[None]:
        """A string, a number or a word; of an object or a list, the beginning."""
        if char in "{[":
            if len(self._closers) == MAX_DEPTH:
                raise Malformed
            self._put(source.take(1))
            self._closers.append("}" if char == "{" else "]")
            self._expects = "key" if char == "{" else "item"
            return
        if char in "\"'":
            yield from self._string(source)
        elif char == "," and self._closers and self._expects == "value":
            self._put("null")
        else:
            yield from self._word(source)
        self._expects = "next"

    def _close(self, bracket: str) -> None:
        """A closing bracket closes those within it too. One that nothing opened is left out."""
        if bracket not in self._closers:
            return
        if self._expects == "value":
            self._put("null")
        self._held = self._held[1:]  # without the comma
        closed = ""
        while not closed.endswith(bracket):
            closed += self._closers.pop()
        self._put(closed)
        self._expects = "next"

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
        quote = source.take(1)
        self._put('"')
        self._quote = quote
        plain = _PLAIN[quote]
        while True:
            if text := source.run(plain):
                self._emit(text)
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
        key = yield from _lexeme(source)
        if not _BARE_KEY.fullmatch(key):
            raise Malformed
        source.take(len(key))
        self._put(f'"{key}"')

    def _word(self, source: Source) -> Steps[None]:
        text = yield from _lexeme(source)
        value = text if _NUMBER.fullmatch(text) else _WORDS.get(text) or mended_number(text)
        if value is None:
            raise Unfinished if (yield from source.ends_after(len(text))) else Malformed
        source.take(len(text))
        self._put(value)


def _lexeme(source: Source) -> Steps[str]:
    """The number or word that follows, not consumed. Raises `Unfinished` for one that was cut off."""
    text = yield from source.peek_run(_LEXEME, MAX_LEXEME)
    if source.is_truncated and (yield from source.ends_after(len(text))):
        raise Unfinished
    return text


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
