"""JSON that is copied while it is written is JSON at every moment, once completed, and the very text where it was JSON.

U1, W16.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.text.formats.json_copy import MAX_DEPTH, MAX_LEXEME, JsonCopy
from octavo.text.formats.source import Malformed, Source, Unfinished

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_PRINTABLE = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]) | st.just(" "))
_PYTHON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _PRINTABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_PRINTABLE, inner, max_size=4),
    max_leaves=12,
)
_FRAGMENTS = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"',
        "'",
        "\\",
        "\\u12",
        '"a": ',
        "'b'",
        "c",
        "1",
        "-",
        ".5",
        "True",
        "nul",
        " ",
        "\n",
    ]
)


class Copied:
    """What became of a text: the copy, what completes it, why it ended, and how much of the text it took."""

    def __init__(self, pieces: Iterable[str], *, truncated: bool = False) -> None:
        parts: list[str] = []
        self.source = Source()
        copy = JsonCopy(parts.append)
        steps = copy.run(self.source)
        self.error: type[Malformed] | None = None
        self.is_done = False
        for piece in pieces:
            self.source.feed(piece)
            self._go_on(steps)
        self.source.end(truncated=truncated)
        self._go_on(steps)
        assert self.is_done
        self.text = "".join(parts)
        self.completion = copy.completion() if self.error is not None else ""
        self.held = copy.held() if self.error is not None else ""

    def _go_on(self, steps: Iterable[None]) -> None:
        if self.is_done:
            return
        try:
            self.is_done = next(iter(steps), "done") == "done"
        except Malformed as error:
            self.is_done, self.error = True, type(error)

    def check(self) -> None:
        """What was passed on becomes JSON by closing what is open; nothing is as good as no value."""
        assert not self.completion.strip('"]}')
        if self.text or self.completion:
            json.loads(self.text + self.completion)

    @property
    def outcome(self) -> tuple[object, ...]:
        return self.text, self.completion, self.error, self.source.num_consumed


@given(
    _VALUES,
    st.sampled_from([None, 0, 1, "\t"]),
    st.sampled_from([(", ", ": "), (",", ":"), (" , ", " :\r\n")]),
    st.booleans(),
    st.sampled_from(["", "}", " ", ',"', "]x", "\n1"]),
)
def test_json_is_copied_verbatim_and_nothing_that_follows(
    value: object, indent: int | str | None, separators: tuple[str, str], is_ascii: bool, after: str
) -> None:
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=is_ascii)
    if text[-1].isdigit():
        after = " " + after  # a number goes on as far as it can
    for pieces in ([text + after], text + after):
        copied = Copied(pieces)
        assert copied.outcome == (text, "", None, len(text))


@given(st.lists(_FRAGMENTS | st.text(max_size=3)).map("".join))
@example('{"a": [1, {"b": "c')
@example('{"a": 1, "a')
@example("[1,,2]")
@example('{"a": \\u0031}')
@example('{"a": "\\ud83d')
@example("[" * 2 * MAX_DEPTH)
@example('{"a": ' * 2 * MAX_DEPTH)
@example('{"a": ' + "1" * 2 * MAX_LEXEME)
def test_whatever_was_copied_is_made_whole_by_its_completion(text: str) -> None:
    copied = Copied([text])
    copied.check()
    assert Copied(text).outcome == copied.outcome
    cut_off = Copied([text], truncated=True)
    cut_off.check()
    assert Copied(text, truncated=True).outcome == cut_off.outcome


@given(_VALUES, st.data())
def test_every_beginning_of_json_is_copied_as_a_beginning_of_it(value: object, data: st.DataObject) -> None:
    """What may still go on, a number or a word, is not passed on when it was cut off."""
    text = json.dumps({"": value})
    size = data.draw(st.integers(0, len(text) - 1))
    for is_truncated in (False, True):
        copied = Copied([text[:size]], truncated=is_truncated)
        assert copied.error is Unfinished
        copied.check()
    assert text.startswith(copied.text + copied.held)


@given(_PYTHON_VALUES)
@example({"it's": 'say "hi"', "\\d": ["'", '"', "\\"]})
def test_what_python_writes_means_the_same_in_json(value: object) -> None:
    text = repr(value)
    for pieces in ([text], text):
        copied = Copied(pieces)
        assert copied.error is None
        assert json.loads(copied.text) == ast.literal_eval(text)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("{a: 1, $b-c: 2,}", {"a": 1, "$b-c": 2}),
        ("[+1, 007, .5, 1., -.5, 1.e3]", [1, 7, 0.5, 1, -0.5, 1e3]),
        ("[NaN, inf, -Infinity, undefined, None]", [None] * 5),
        ('{"a": [1, {"b": [2}]}', {"a": [1, {"b": [2]}]}),
        ('{"a": [1, 2}', {"a": [1, 2]}),
        ('{"a": 1]]}', {"a": 1}),
        ('{"a": 1, ]}', {"a": 1}),
        ('"a\n\tb\\\nc\\x\\\'\x00"', "a\n\tb\nc\\x'\x00"),
        ('"C:\\users\\\\n"', "C:\\users\\n"),
        ("'a\"b'", 'a"b'),
    ],
)
def test_slips_with_one_reading_are_mended(text: str, meaning: object) -> None:
    for pieces in ([text], text):
        copied = Copied(pieces)
        assert copied.error is None
        assert json.loads(copied.text) == meaning


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('{"a": oops}', '{"a": oops}'),
        ('{"a": "He said "hi"', 'hi"'),
        ('{"a" 1}', '{"a" 1}'),
        ("[1 2]", "2]"),
        ("[1,,2]", ",,2]"),
        ('{"a": , "b": 1}', '{"a": , "b": 1}'),
        ('{"a": 1, "b": }', ', "b": }'),
        ('{"a": 1, "b": {"c": [oops]', ', "b": {"c": [oops]'),
        ("{1: 2}", "{1: 2}"),
        ('{"a": ' + "1" * (MAX_LEXEME + 1) + "}", '{"a": ' + "1" * (MAX_LEXEME + 1) + "}"),
        ("(1)", "(1)"),
    ],
)
def test_the_copy_ends_where_the_text_is_no_json_any_more(text: str, rest: str) -> None:
    """What was not understood is still to be read: nothing of it is lost."""
    for pieces in ([text], text):
        copied = Copied(pieces)
        assert copied.error is Malformed
        copied.source.rewind()  # to the beginning of what was held
        assert text[copied.source.num_consumed :] == rest
