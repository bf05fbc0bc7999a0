"""Which regular expressions mean the same to the grammar engine as to everybody else, and patterns for formats.

The engine reads Rust's dialect. What that dialect reads otherwise than ECMA-262 and Python do is refused, so that a
pattern never means something else than its author thinks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_ESCAPES: Final = re.compile(
    r"\\(?:[dDwWsStnrfv]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[pP]\{[A-Za-z_=:]+\}|[^A-Za-z0-9<>\s])", re.ASCII
)
_GROUP: Final = re.compile(r"\(\?(?::|P?<[A-Za-z_]\w*>)", re.ASCII)
_COUNT: Final = re.compile(r"\{\d{1,9}(?:,(?:\d{1,9})?)?\}", re.ASCII)


def problem_of(pattern: str) -> str | None:
    """Why `pattern` cannot be used, or None. What it lets pass may still be refused by the engine, never misread."""
    i, end = 0, len(pattern)
    after_quantifier = False
    while i < end:
        char = pattern[i]
        is_quantifier = False
        if char == "\\":
            found = _ESCAPES.match(pattern, i)
            if found is None:
                return f"the escape {pattern[i : i + 2]!r} is not supported"
            i = found.end()
        elif char == "[":
            closing = _end_of_class(pattern, i)
            if isinstance(closing, str):
                return closing
            i = closing
        elif char == "(" and pattern.startswith("(?", i):
            found = _GROUP.match(pattern, i)
            if found is None:
                return f"the group {pattern[i : i + 4]!r} is not supported (no look-around, no flags)"
            i = found.end()
        elif char == "{":
            found = _COUNT.match(pattern, i)
            if found is None:
                return "a '{' that begins no count must be escaped"
            i, is_quantifier = found.end(), True
        elif char in "*+?":
            if after_quantifier and char != "?":
                return f"the quantifier {pattern[i - 1 : i + 1]!r} is not supported"
            i, is_quantifier = i + 1, True
        else:
            i += 1
        after_quantifier = is_quantifier
    return None


def _end_of_class(pattern: str, start: int) -> int | str:
    """The index behind the character class that begins at `start`, or why it cannot be used."""
    i = start + 2 if pattern.startswith("[^", start) else start + 1
    first = True
    while i < len(pattern):
        char = pattern[i]
        if char == "]":
            return "an empty character class is not supported" if first else i + 1
        if char == "[":
            return "a '[' in a character class must be escaped"
        if pattern[i : i + 2] in ("&&", "--", "~~"):
            return f"{pattern[i : i + 2]!r} in a character class must be escaped"
        if char == "\\":
            found = _ESCAPES.match(pattern, i)
            if found is None:
                return f"the escape {pattern[i : i + 2]!r} is not supported"
            i = found.end()
        else:
            i += 1
        first = False
    return "a character class is not closed"


#: Patterns with look-around that widely used generators write, and the same language without it: zod's `z.email()` and
#: pydantic's `Decimal`.
_WITHOUT_LOOK_AROUND: Final = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^(?:[A-Za-z0-9_'+-]+\.)*[A-Za-z0-9_'+-]*[A-Za-z0-9_+-]@(?:[A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
    ),
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$",
}


def patterns_of(pattern: str) -> list[str]:
    """Patterns that all match where `pattern` does: what looks ahead from the beginning is a condition of its own."""
    if pattern in _WITHOUT_LOOK_AROUND:
        return [_WITHOUT_LOOK_AROUND[pattern]]
    found: list[str] = []
    i = 1
    while pattern.startswith("^") and pattern.startswith("(?=", i):
        end = _end_of_group(pattern, i)
        if end is None:
            return [pattern]
        found.append(f"^(?:{pattern[i + 3 : end]})")
        i = end + 1
    return [f"^(?:{pattern[i:]})", *found] if found and _is_one_branch(pattern, i) else [pattern]


def _end_of_group(pattern: str, start: int) -> int | None:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for i, char in _brackets(pattern, start):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth == 0:
            return i
    return None


def _is_one_branch(pattern: str, start: int) -> bool:
    """No alternative stands outside of groups."""
    depth = 0
    for _, char in _brackets(pattern, start):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "|" and depth == 0:
            return False
    return True


def _brackets(pattern: str, start: int) -> Iterator[tuple[int, str]]:
    """Where groups and alternatives are, outside of escapes and classes."""
    in_class = is_escaped = False
    for i in range(start, len(pattern)):
        char = pattern[i]
        if is_escaped:
            is_escaped = False
        elif char == "\\":
            is_escaped = True
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()|":
            yield i, char


# Years from 1000, so that every date is one in all calendars of programs; no leap seconds, which need a table.
_LEAP: Final = r"(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
DATE: Final = (
    r"(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
TIME: Final = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_CLOCK})"

_HEX: Final = "[0-9a-fA-F]"
#: Characters of a path in a URI, and those of a segment that might be taken for a scheme.
_PATH: Final = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%{_HEX}{{2}})"
_NO_COLON: Final = rf"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%{_HEX}{{2}})"
_SCHEME: Final = "[A-Za-z][A-Za-z0-9+.-]*:"
_URI_REFERENCE: Final = (
    rf"(?:(?:{_SCHEME})?//[A-Za-z0-9._~-]+(?::[0-9]{{1,5}})?(?:/{_PATH}*)*|(?:{_SCHEME})?/(?:{_PATH}+(?:/{_PATH}*)*)?"
    rf"|{_SCHEME}{_PATH}+(?:/{_PATH}*)*|{_NO_COLON}+(?:/{_PATH}*)*)?(?:\?(?:{_PATH}|[/?])*)?(?:#(?:{_PATH}|[/?])*)?"
)
_VARIABLE: Final = r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*(?::[1-9][0-9]{0,3}|\*)?"
_URI_TEMPLATE: Final = rf"(?:[A-Za-z0-9._~!$&()*+,;=:@/?#-]|%{_HEX}{{2}}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
_POINTER: Final = "(?:/(?:[^~/]|~[01])*)*"

#: Formats that are written as a pattern here; each yields a subset of what the format allows.
FORMAT_PATTERNS: Final = {
    "date": f"^{DATE}$",
    "time": f"^{TIME}$",
    "date-time": f"^{DATE}T{TIME}$",
    "partial-date-time": rf"^{DATE}T{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?$",
    "uri-reference": f"^{_URI_REFERENCE}$",
    "iri-reference": f"^{_URI_REFERENCE}$",
    "uri-template": f"^{_URI_TEMPLATE}$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
    "byte": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    **{
        f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
        for version in range(1, 9)
    },
}
#: Formats that the grammar engine itself enforces, under its name; those of other alphabets in their ASCII part.
ENGINE_FORMATS: Final = {
    **{name: name for name in ("duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")},
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
}
#: Formats of JSON Schema that nothing enforces here. All others are annotations, as JSON Schema has it.
REFUSED_FORMATS: Final = frozenset({"regex"})

#: A pattern of white space between JSON tokens: space, tab, newline and carriage return, in classes and counts.
_WHITESPACE: Final = re.compile(
    r"(?:[ \t\n\r]|\\[ntr ]|\\x(?:20|0[9aAdD])|[\[\]()|?*+]|\{[0-9]{1,4}(?:,(?:[0-9]{1,4})?)?\})*"
)


def is_whitespace_pattern(pattern: str) -> bool:
    """Whether a regex can match nothing but white space of JSON, by its looks."""
    return _WHITESPACE.fullmatch(pattern) is not None and problem_of(pattern) is None
