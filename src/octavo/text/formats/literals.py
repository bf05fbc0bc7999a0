"""Values in notations other than JSON, copied as JSON while a model writes them.

What is passed on is at every moment the beginning of one valid JSON value, and what is not certain yet is held, as with
`json_copy.JsonCopy`. Brackets are kept on a list and not on the stack, so that no depth is too deep, and each character
is looked at once.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from octavo.text.formats.json_copy import MAX_LEXEME, Hold, JsonCopy, mended_number
from octavo.text.formats.source import Malformed, Source, Steps, Unfinished, marks

_LEXEME: Final = re.compile(r"[A-Za-z0-9_+.\-]+")
_GROUPED: Final = re.compile(r"(?<=[0-9A-Fa-f])_(?=[0-9A-Fa-f])")
_BASED: Final = re.compile(r"([+-]?)0(?:[xX]([0-9A-Fa-f]+)|[oO]([0-7]+)|[bB]([01]+))")
_WORDS: Final = {
    **{word: word for word in ("true", "false", "null")},
    "True": "true", "False": "false", "None": "null",
}  # fmt: skip


class LiteralCopy(ABC):
    """One value. `emit` gets its JSON piece by piece; `run` may be called once."""

    #: Opening bracket -> the closing one, and the opening and the closing one in JSON.
    brackets: ClassVar[Mapping[str, tuple[str, str, str]]] = {"[": ("]", "[", "]"), "{": ("}", "{", "}")}

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._due: list[tuple[str, str, str]] = []  # brackets that are open, innermost last
        self._num_due = 0  # of them, those that were passed on
        self._expects = "value"  # or "item" or "key" (or the end of a list, an object), "colon", "next"
        self._has_comma = False  # that nothing has followed yet
        self._pending: list[str] = []  # keys and opening brackets that no value has followed yet
        self._ending = ""  # of the string that is being passed on
        self._hold = Hold()

    def completion(self) -> str:
        """What makes a whole value of that which was passed on; "" if that is nothing."""
        return self._ending + "".join(bracket[2] for bracket in reversed(self._due[: self._num_due]))

    def held(self) -> str:
        """What was written and not passed on."""
        return (", " if self._has_comma else "") + "".join(self._pending) if self._pending else ""

    def run(self, source: Source) -> Steps[None]:
        """Copy one value, which begins where the source stands. Raises `Malformed`, `Unfinished`."""
        while True:
            yield from source.skip_blanks()
            char = yield from source.peek()
            if not char:
                raise Unfinished
            expects = self._expects
            if expects in ("item", "key", "next") and char == self._due[-1][0]:
                source.take(1)
                self._has_comma = self._has_comma and bool(self._pending)
                self._pass_on(source, self._due.pop()[2])
            elif expects == "next":
                self._hold.begin(source)
                yield from source.expect(",")
                self._has_comma = True
                self._expects = "key" if self._due[-1][1] == "{" else "item"
                continue
            elif expects == "colon":
                yield from source.expect(":")
                self._pending.append(": ")
                self._expects = "value"
                continue
            elif expects == "key":
                yield from self._key(source)
                continue
            elif (bracket := self.brackets.get(char)) is not None:
                self._hold.begin(source)
                source.take(1)
                self._pending.append(bracket[1])
                self._due.append(bracket)
                self._expects = "key" if bracket[1] == "{" else "item"
                continue
            else:
                yield from self._scalar(source)
            if not self._due:
                self._expects = ""
                return
            self._expects = "next"

    def _pass_on(self, source: Source, text: str) -> None:
        """A value begins or ends: what was held is certain."""
        self._hold.end(source)
        self._emit((", " if self._has_comma else "") + "".join(self._pending) + text)
        self._has_comma = False
        self._pending.clear()
        self._num_due = len(self._due)

    # ------------------------------------------------------------ of each notation
    @abstractmethod
    def _key(self, source: Source) -> Steps[None]:
        """Add a key to what is held, and expect "colon"."""

    @abstractmethod
    def _scalar(self, source: Source) -> Steps[None]:
        """Copy a value that has no brackets."""

    # ------------------------------------------------------------ words
    def _word(self, source: Source) -> Steps[str]:
        """The JSON of a number or a word, which is consumed."""
        text = yield from source.peek_run(_LEXEME, MAX_LEXEME)
        value = word_value(text)
        is_last = yield from source.ends_after(len(text))
        if value is None or (is_last and source.is_truncated):
            raise Unfinished if is_last else Malformed
        source.take(len(text))
        return value


def word_value(text: str) -> str | None:
    """The JSON of a number or a word; None if it is neither. Numbers may be written as Python writes them."""
    if text in _WORDS:
        return _WORDS[text]
    text = _GROUPED.sub("", text)
    if (based := _BASED.fullmatch(text)) is not None:
        sign, *digits = based.groups()
        value = next(int(part, base) for part, base in zip(digits, (16, 8, 2), strict=True) if part)
        return f"-{value}" if sign == "-" and value else str(value)
    return mended_number(text)


class PythonCopy(LiteralCopy):
    """Literals of Python. Tuples become lists; so does what stands in parentheses alone. Sets, bytes, raw and format
    strings are refused. A line break may stand in any string."""

    brackets: ClassVar = {**LiteralCopy.brackets, "(": (")", "[", "]")}

    def _key(self, source: Source) -> Steps[None]:
        char = yield from source.peek()
        if char in ("'", '"'):
            yield from self._string(source, self._pending.append)
        else:
            value = yield from self._word(source)
            self._pending.append(f'"{value}"')
        self._expects = "colon"

    def _scalar(self, source: Source) -> Steps[None]:
        char = yield from source.peek()
        if char in ("'", '"'):
            yield from self._string(source, self._emit)
        else:
            value = yield from self._word(source)
            self._pass_on(source, value)

    def _string(self, source: Source, write: Callable[[str], None]) -> Steps[None]:
        """A value, or a key, which is held."""
        char = yield from source.peek()
        is_long = yield from source.at(char * 3)
        if not is_long and source.is_cut_within(char * 3):
            raise Unfinished
        quote = source.take(3 if is_long else 1)
        if self._expects == "key":
            write('"')
        else:
            self._pass_on(source, '"')
            self._ending = '"'
        stops, inside = marks(quote, "\\"), _inside_writer(write)
        while True:
            stop = yield from source.copy_until(stops, inside, drops_cut_mark=True)
            if stop is None:
                raise Unfinished
            if stop == "\\":
                inside((yield from _escape(source)))
                continue
            source.take(len(quote))
            self._ending = ""
            write('"')
            return


def json_inside(text: str) -> str:
    """The inside of a JSON string. Halves of characters stay escaped: nothing else can carry them."""
    text = json.dumps(text, ensure_ascii=False)[1:-1]
    return _HALVES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_HALVES: Final = re.compile("[\ud800-\udfff]")
_SIMPLE: Final = dict(zip("\\'\"abfnrtv/\n", "\\'\"\a\b\f\n\r\t\v/", strict=False)) | {"\n": ""}
_HEX_DIGITS: Final = {"x": 2, "u": 4, "U": 8}
_OCTAL: Final = re.compile(r"[0-7]{1,3}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
#: Characters of the longest name of a character, and more.
_MAX_CHARACTER_NAME: Final = 100
_NAME_BEGUN: Final = re.compile(r"\\N\{[A-Za-z0-9 -]*")


def _escape(source: Source) -> Steps[str]:
    """The text of an escape, as Python reads it; also \\/, which is JSON's. One that means nothing stays as it is."""
    pair = yield from source.peek(2)
    if len(pair) < 2:
        raise Unfinished
    char = pair[1]
    if char in _SIMPLE:
        source.take(2)
        return _SIMPLE[char]
    if char in "01234567":
        text = yield from source.peek(4)
        digits = _OCTAL.match(text, 1)
        assert digits is not None
        if len(text) < 4 and digits.end() == len(text) and source.is_truncated:
            raise Unfinished
        source.take(digits.end())
        return chr(int(digits[0], 8))
    if char in _HEX_DIGITS:
        size = 2 + _HEX_DIGITS[char]
        text = yield from source.peek(size)
        if len(text) == size and _HEX.fullmatch(text, 2) and int(text[2:], 16) <= 0x10FFFF:
            source.take(size)
            return chr(int(text[2:], 16))
        if len(text) < size and _HEX.fullmatch(text + "0", 2) and source.is_truncated:
            raise Unfinished
    if char == "N" and (named := (yield from _named(source))) is not None:
        return named
    return source.take(1)


def _named(source: Source) -> Steps[str | None]:
    """\\N{...}, which is consumed if there is a character of that name."""
    size = 3
    while not (text := (yield from source.peek(size))).endswith("}"):
        if len(text) < size and source.is_truncated:
            raise Unfinished
        if len(text) < size or size > _MAX_CHARACTER_NAME or not _NAME_BEGUN.fullmatch(text):
            return None
        size += 1
    try:
        named = unicodedata.lookup(text[3:-1])
    except KeyError:
        return None
    source.take(size)
    return named


class KeyedCopy(LiteralCopy):
    """Values as FunctionGemma and Gemma 4 write them: like JSON, with keys that have no quotes and with a mark on both
    sides of each string, in which nothing is escaped. JSON's own strings are read as well."""

    def __init__(self, emit: Callable[[str], None], quote: str) -> None:
        super().__init__(emit)
        self._quote = quote

    def _key(self, source: Source) -> Steps[None]:
        if (yield from source.at(self._quote)):
            yield from self._string(source, self._pending.append)
        elif (yield from source.at('"')):
            yield from JsonCopy(self._pending.append).run(source)
        else:
            key = yield from _bare_key(source)
            self._pending.append(json.dumps(key, ensure_ascii=False))
        self._expects = "colon"

    def _scalar(self, source: Source) -> Steps[None]:
        if (yield from source.at(self._quote)):
            yield from self._string(source, self._emit)
        elif (yield from source.at('"')):
            self._pass_on(source, "")
            self._ending = '"'
            yield from JsonCopy(self._emit).run(source)
            self._ending = ""
        elif source.is_cut_within(self._quote):
            raise Unfinished
        else:
            value = yield from self._word(source)
            self._pass_on(source, value)

    def _string(self, source: Source, write: Callable[[str], None]) -> Steps[None]:
        """A value, or a key, which is held."""
        source.take(len(self._quote))
        if self._expects == "key":
            write('"')
        else:
            self._pass_on(source, '"')
            self._ending = '"'
        inside = _inside_writer(write)
        if (yield from source.copy_until(marks(self._quote), inside, drops_cut_mark=True)) is None:
            raise Unfinished
        source.take(len(self._quote))
        self._ending = ""
        write('"')


def _inside_writer(write: Callable[[str], None]) -> Callable[[str], None]:
    """What writes text as the inside of a JSON string."""
    return lambda text: write(json_inside(text)) if text else None


def _bare_key(source: Source) -> Steps[str]:
    key = (yield from source.text_until(marks(*":{}[],\n"), MAX_LEXEME)).strip()
    if not key or not (yield from source.at(":")):
        raise Malformed
    return key
