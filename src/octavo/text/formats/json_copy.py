"""JSON copied while a model writes it: what is passed on is at every moment the beginning of one valid JSON value.

The copy is verbatim where the text is JSON, blanks and spelling of numbers and escapes included. Slips that have one
reading are mended in passing: line breaks and other control characters in strings, backslashes before characters that
need none, strings in single quotes, keys without quotes, Python's True, False and None, numbers that JSON writes
otherwise, commas before a closing bracket, brackets that are not closed before an outer one is, closing brackets that
nothing opened. Anything else raises `Malformed`.

Nothing is made up. Commas, opening brackets and keys are held until the value after them begins, and only then passed
on. So a whole value is made of what was passed on by closing what is open (`completion`): no key is ever without its
value. Where the copy fails, the source is recording what was held, so that it can be read again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from octavo.text.formats.source import BLANKS, Malformed, Source, Steps, Unfinished

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


class Hold:
    """What a copy holds is recorded by the source, unless whoever reads before the copy is recording already."""

    __slots__ = ("_is_own",)

    def __init__(self) -> None:
        self._is_own = False

    def begin(self, source: Source) -> None:
        if not source.is_recording:
            source.record()
            self._is_own = True

    def end(self, source: Source) -> None:
        if self._is_own:
            source.recorded()
            self._is_own = False


class JsonCopy:
    """One value. `emit` gets the copy piece by piece; `run` does the work and may be called once."""

    __slots__ = (
        "_closers",
        "_comma",
        "_emit",
        "_expects",
        "_hold",
        "_is_begun",
        "_is_in_string",
        "_num_closers",
        "_pending",
    )

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._closers: list[str] = []  # brackets that are due, innermost last
        self._num_closers = 0  # of them, those whose opening brackets were passed on
        #: "value", "item" (a value or the end of a list), "key" (or the end of an object), "colon", "next"
        self._expects = "value"
        self._comma = ""  # one that no value has followed yet, with the blanks after it
        self._pending: list[str] = []  # what stands between it and the value: keys and opening brackets
        self._is_in_string = False  # of which the beginning was passed on
        self._is_begun = False  # something was passed on
        self._hold = Hold()

    def run(self, source: Source) -> Steps[None]:
        """Copy one value, which begins where the source stands. Raises `Malformed`, `Unfinished`."""
        while self._closers or self._expects != "next":
            yield from self._hold_blanks(source)
            char = yield from source.peek()
            if not char:
                raise Unfinished
            yield from self._step(source, char)

    def _step(self, source: Source, char: str) -> Steps[None]:
        expects = self._expects
        if char in "}]" and self._closers and expects not in ("colon", "value"):
            self._close(source, source.take(1))
        elif expects == "key":
            yield from (self._string(source, self._pending.append) if char in "\"'" else self._bare_key(source))
            self._expects = "colon"
        elif expects in ("value", "item"):
            yield from self._value(source, char)
        elif char == ":" and expects == "colon":
            self._pending.append(source.take(1))
            self._expects = "value"
        elif char == "," and expects == "next":
            self._hold.begin(source)
            self._comma = source.take(1)
            self._expects = "key" if self._closers[-1] == "}" else "item"
        else:
            raise Malformed

    def completion(self) -> str:
        """What makes a whole value of that which was passed on; "" if that is nothing."""
        return ('"' if self._is_in_string else "") + "".join(reversed(self._closers[: self._num_closers]))

    def held(self) -> str:
        """What was written and not passed on. A comma alone is none of it: it may come to nothing."""
        return self._comma + "".join(self._pending) if self._pending else ""

    # ------------------------------------------------------------ pieces
    def _value(self, source: Source, char: str) -> Steps[None]:
        """A string, a number or a word; of an object or a list, the beginning."""
        if char in "{[":
            if len(self._closers) == MAX_DEPTH:
                raise Malformed
            self._hold.begin(source)
            self._pending.append(source.take(1))
            self._closers.append("}" if char == "{" else "]")
            self._expects = "key" if char == "{" else "item"
            return
        if char in "\"'":
            yield from self._string(source, self._emit)
        else:
            yield from self._word(source)
        self._expects = "next"

    def _close(self, source: Source, bracket: str) -> None:
        """A closing bracket closes those within it too. One that nothing opened is left out."""
        if bracket not in self._closers:
            return
        if not self._pending:
            self._comma = self._comma[1:]  # the blanks after it
        closed = ""
        while not closed.endswith(bracket):
            closed += self._closers.pop()
        self._pass_on(source, closed)
        self._expects = "next"

    def _pass_on(self, source: Source, text: str) -> None:
        """A value begins or ends: what was held is certain."""
        self._hold.end(source)
        self._emit(self._comma + "".join(self._pending) + text)
        self._comma = ""
        self._pending.clear()
        self._num_closers = len(self._closers)
        self._is_begun = True

    def _hold_blanks(self, source: Source) -> Steps[None]:
        """Blanks inside the value are part of the copy; those after what is held wait with it."""
        while True:
            blanks = source.run(_BLANKS)
            if blanks and self._pending:
                self._pending.append(blanks)
            elif self._comma:
                self._comma = (self._comma + blanks)[:MAX_LEXEME]
            elif blanks and self._is_begun:
                self._emit(blanks)
            char = yield from source.peek()
            if not char or char not in BLANKS:
                return

    def _string(self, source: Source, write: Callable[[str], None]) -> Steps[None]:
        """A value, or a key, which is held."""
        quote = source.take(1)
        if self._expects == "key":
            write('"')
        else:
            self._pass_on(source, '"')
            self._is_in_string = True
        plain = _PLAIN[quote]
        while True:
            if text := source.run(plain):
                write(text)
            char = yield from source.peek()
            if not char:
                raise Unfinished
            if char == quote:
                source.take(1)
                self._is_in_string = False
                write('"')
                return
            if char == "\\":
                yield from _escape(source, write)
            elif char == '"':
                source.take(1)
                write('\\"')
            elif char < " ":
                write(json.dumps(source.take(1))[1:-1])

    def _bare_key(self, source: Source) -> Steps[None]:
        key = yield from _lexeme(source)
        if not _BARE_KEY.fullmatch(key):
            raise Malformed
        source.take(len(key))
        self._pending.append(f'"{key}"')

    def _word(self, source: Source) -> Steps[None]:
        text = yield from _lexeme(source)
        value = text if _NUMBER.fullmatch(text) else _WORDS.get(text) or mended_number(text)
        if value is None:
            raise Unfinished if (yield from source.ends_after(len(text))) else Malformed
        source.take(len(text))
        self._pass_on(source, value)


def _escape(source: Source, write: Callable[[str], None]) -> Steps[None]:
    pair = yield from source.peek(2)
    if len(pair) < 2:
        raise Unfinished
    if pair[1] in '"\\/bfnrt':
        write(source.take(2))
    elif pair[1] == "u":
        text = yield from source.peek(6)
        if _HEX.fullmatch(text, 2):
            write(source.take(6))
        elif len(text) < 6:
            raise Unfinished
        else:
            source.take(1)
            write("\\\\")
    elif pair[1] == "'":
        write(source.take(2)[1])
    else:
        source.take(1)
        if pair[1] >= " ":  # before a line break it means nothing
            write("\\\\")


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
