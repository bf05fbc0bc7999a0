"""Why a body is not JSON: what is wrong, where it stands, and in which field.

The decoder is fast and says little, and for half a surrogate pair it says that the data was truncated. So a body that
it refuses is read once more here, slowly and only as far as its first fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, NoReturn

from octavo.base.errors import InvalidRequest, clip

#: Most values and keys, and most characters, that are examined: a large refused body must not delay the streams. The
#: error for a fault beyond them does not name its place.
MAX_STEPS: Final = 100_000
MAX_CHARS: Final = 2 << 20
_MARGIN: Final = 64  # more than an escape or a literal has
#: Python's limit, and the decoder's.
_MAX_DIGITS: Final = 4300
_MAX_PATH_CHARS: Final = 200

_SPACE = re.compile(r"[ \t\n\r]*+")
#: A string without its closing quote. Possessive: nothing is remembered for a way back.
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+(?![0-9.eE+-])")
_LITERAL = re.compile(r"(?:true|false|null)(?![A-Za-z0-9_])")
_NUMBER_LIKE = re.compile(r"[+-]?(?:[0-9.]|Inf|NaN)[0-9A-Za-z.+-]{0,15}")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,31}")
_SPELLINGS: Final = {"True": "true", "False": "false", "None": "null", "undefined": "null", "nil": "null"}
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_NO_NUMBERS: Final = frozenset({"NaN", "Infinity", "nan", "inf", "Inf"})


class _Fault(Exception):
    """`what` is wrong at the character `at`."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what = what
        self.at = at


def json_fault(data: bytes) -> InvalidRequest:
    """The error for a body that is not valid JSON. Its `param` is the path of the field with the fault, if any."""
    if not data.strip():
        return InvalidRequest("The request has no body; a JSON object is expected.")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(data) > 3 and b"\0" in data[:2]):
        return InvalidRequest(
            "The body is not valid JSON: it is encoded in UTF-16 or UTF-32, and JSON is sent in UTF-8."
        )
    try:
        text, broken = data.decode(), None
    except UnicodeDecodeError as exc:
        text, broken = data[: exc.start].decode(), exc
    scanner = _Scanner(text[:MAX_CHARS])
    fault = scanner.first_fault()
    # Where the text is cut off, what was cut looks like a fault.
    is_seen = fault is not None and (len(text) <= MAX_CHARS or fault.at < MAX_CHARS - _MARGIN)
    if broken is not None and not (fault is not None and is_seen and fault.at < len(text)):
        what = f"the byte `\\x{data[broken.start]:02x}` is not UTF-8 (is the body in Latin-1?)"
        return _error(_Fault(what, len(text)), text, scanner.path if is_seen else [])
    if fault is None or not is_seen:
        return InvalidRequest("The body is not valid JSON.")
    return _error(fault, text, scanner.path)


def _error(fault: _Fault, text: str, path: Sequence[str | int]) -> InvalidRequest:
    before = text[: fault.at]
    line, column = before.count("\n") + 1, fault.at - before.rfind("\n")
    param = clip(".".join(map(str, path)), _MAX_PATH_CHARS)
    place = f"at line {line}, column {column} (byte {len(before.encode())})"
    inside = f", in `{param}`" if param else ""
    return InvalidRequest(f"The body is not valid JSON: {fault.what}, {place}{inside}.", param or None)


class _Scanner:
    """Reads `text` up to its first fault. `path` leads to the value that is being read: keys and places in lists."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path: list[str | int] = []
        self._at = 0
        self._open: list[str] = []  # the closing bracket of each container around
        self._is_empty = False  # nothing follows the last opening bracket yet
        self._comma = -1  # where the last comma stands, when nothing follows it yet

    def first_fault(self) -> _Fault | None:
        """None: there is none, or more than `MAX_STEPS` stand before it."""
        try:
            for _ in range(MAX_STEPS):
                if not self._step():
                    return None
        except _Fault as fault:
            return fault
        return None

    def _step(self) -> bool:
        """Take a value, or the opening of one. False: the text is at its end."""
        char = self._next()
        if self._open and char == self._open[-1] and self._may_close():
            self._close()
        elif self._opens(char):
            return True
        else:
            self._scalar(char)
        return self._after_value()

    # ------------------------------------------------------------ structure
    def _next(self) -> str:
        """The next character that is no space, without taking it."""
        match = _SPACE.match(self.text, self._at)
        assert match is not None  # it matches nothing, too
        self._at = match.end()
        if self._at == len(self.text):
            self._truncated()
        return self.text[self._at]

    def _may_close(self) -> bool:
        if self._comma >= 0:
            raise _Fault(f"there is a comma before the closing `{self._open[-1]}`", self._comma)
        return self._is_empty

    def _opens(self, char: str) -> bool:
        """Take an opening bracket, and what must follow it before a value."""
        if char not in "{[":
            return False
        self._at += 1
        self._comma, self._is_empty = -1, True
        self._open.append("}" if char == "{" else "]")
        self.path.append("" if char == "{" else 0)
        if char == "{" and self._next() != "}":
            self._key()
        return True

    def _close(self) -> None:
        self._at += 1
        self._open.pop()
        self.path.pop()

    def _after_value(self) -> bool:
        """Take what stands between two values. False: the text is at its end."""
        self._comma, self._is_empty = -1, False
        while True:
            if not self._open:
                match = _SPACE.match(self.text, self._at)
                self._at = match.end() if match else self._at
                if self._at < len(self.text):
                    raise _Fault("there is more text after its end", self._at)
                return False
            char = self._next()
            if char == self._open[-1]:
                self._close()
                continue
            if char != ",":
                self._refuse_foreign(char)
                raise _Fault(f"a comma or `{self._open[-1]}` is missing before {_shown(char)}", self._at)
            self._comma = self._at
            self._at += 1
            if self._open[-1] == "]":
                self.path[-1] = int(self.path[-1]) + 1
            elif self._next() != "}":
                self._key()
            return True

    def _key(self) -> None:
        char = self._next()
        self.path[-1] = ""
        if char != '"':
            at = self._at
            self.path.pop()
            self._refuse_foreign(char)
            word = _WORD.match(self.text, at)
            shown = f"the key `{word[0]}`" if word else _shown(char)
            raise _Fault(f"{shown} stands where a key in double quotes is expected", at)
        self.path[-1] = self._string()
        if self._next() != ":":
            raise _Fault("a colon is missing after the key", self._at)
        self._at += 1
        self._comma, self._is_empty = -1, False

    # ------------------------------------------------------------ values
    def _scalar(self, char: str) -> None:
        if char == '"':
            self._string()
            return
        for pattern in (_NUMBER, _LITERAL):
            if match := pattern.match(self.text, self._at):
                self._check_range(match[0])
                self._at = match.end()
                return
        self._refuse(char)

    def _string(self) -> str:
        """Take a string. Returns what is between its quotes, as written."""
        start = self._at
        match = _STRING.match(self.text, start)
        assert match is not None  # it begins with a quote
        content, end = match[0][1:], match.end()
        # Before its end: what the decoder says of a string without one is often the fault of a half pair in it.
        for escape in _ESCAPE.finditer(content) if _SURROGATE.search(content) else ():
            if escape["half"]:
                what = f"`\\{escape['half']}` is half of a surrogate pair (an emoji that was cut in two?)"
                raise _Fault(what, start + 1 + escape.start())
        if end == len(self.text) or (self.text[end] == "\\" and end + 1 == len(self.text)):
            self._at = len(self.text)
            raise _Fault("it ends inside a string", len(self.text))
        char = self.text[end]
        if char == "\\":
            raise _Fault(f"{_shown(self.text[end : end + 2])} is not an escape that JSON has", end)
        if char != '"':
            written = _ESCAPES.get(char, f"\\u{ord(char):04x}")
            raise _Fault(f"the control character U+{ord(char):04X} is written `{written}` in a string", end)
        self._at = end + 1
        return content

    def _check_range(self, number: str) -> None:
        if number[0] in "tfn":
            return
        if not set(number) & set(".eE"):
            if len(number) > _MAX_DIGITS:
                raise _Fault(f"the number has {len(number)} digits", self._at)
        elif math.isinf(float(number)):
            raise _Fault(f"the number {number[:24]} is beyond the range of a 64-bit float", self._at)

    # ------------------------------------------------------------ faults
    def _truncated(self) -> NoReturn:
        what = f"it ends before the closing `{self._open[-1]}`" if self._open else "it ends before its first value"
        raise _Fault(what, self._at)

    def _refuse(self, char: str) -> NoReturn:
        """Raise the fault of a text that is not a value."""
        at = self._at
        self._refuse_foreign(char)
        word = _WORD.match(self.text, at)
        if word and word[0] in _SPELLINGS:
            raise _Fault(f"`{word[0]}` is written `{_SPELLINGS[word[0]]}`", at)
        number = _NUMBER_LIKE.match(self.text, at)
        if number or (word and word[0] in _NO_NUMBERS):
            shown = number[0] if number else word[0] if word else char
            raise _Fault(f"`{shown}` is not a number that JSON has", at)
        if char in "]},:":
            raise _Fault(f"a value is missing before `{char}`", at)
        raise _Fault(f"{'`' + word[0] + '`' if word else _shown(char)} stands where a value is expected", at)

    def _refuse_foreign(self, char: str) -> None:
        """Raise the fault of literals and comments that JSON does not have and other languages do."""
        if char in "/#":
            raise _Fault("JSON has no comments", self._at)
        if char == "'":
            raise _Fault("strings and keys are written in double quotes, not in single ones", self._at)


def _shown(char: str) -> str:
    return f"`{char}`" if char.isprintable() else "U+" + " U+".join(f"{ord(c):04X}" for c in char)
