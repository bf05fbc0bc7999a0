"""Anything may come from a model: no parser raises, and what it says does not depend on the pieces (U1, W14-W16).

`bench/formats.py` shows that it takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.formats.output_parser import OutputFormat
from octavo.text.formats.table import TOOL_FORMATS
from support.output_corpus import CASES, output_format, read

#: One reasoning row for each way to mark thinking.
REASONING = ("qwen3", "deepseek_r1", "mistral", "granite")
_FRAGMENTS = (
    *('{"name": "f", "arguments": {', '{"name": "add", "parameters": {"a": ', '"name"', '"arguments": ', "f", "add"),
    *("{", "}", "[", "]", "(", ")", "<", ">", "</", "=", ":", ",", ";", '"', "'", "\\", '\\"', "\\u00", "\\ud83d"),
    *("true", "None", "nul", "-", "1.", "1e400", "007", "```", "```json\n", "\n", " ", "\t\r\n", "functions.f:0"),
    *('{"a": [1, {"b": "c"}]}', '{"a": 1,', "{'a': 'b'}", '"{\\"a\\": 1}"', "é", "\U0001f600", "\u2028", "\x00"),
)
_CASES_OF = {name: [case for case in CASES if case.format_name == name] for name in {*TOOL_FORMATS, "none"}}


def _marks(row: OutputFormat) -> list[str]:
    found = sorted(row.marks) or ["<tool_call>"]
    return [*found, *(mark[: len(mark) // 2 + 1] for mark in found)]


@st.composite
def _written(draw: st.DrawFn, name: str) -> tuple[OutputFormat, str]:
    """A format's reader, and a text of its marks and of fragments, or one of the corpus with some of it replaced."""
    row = output_format(
        name,
        draw(st.sampled_from([None, *REASONING])),
        is_thinking=draw(st.sampled_from([None, True, False])),
    )
    fragment = st.one_of(st.sampled_from(_marks(row)), st.sampled_from(_FRAGMENTS), st.text(max_size=3))
    if draw(st.booleans()):
        return row, "".join(draw(st.lists(fragment, max_size=24)))
    text = draw(st.sampled_from(_CASES_OF[name])).text
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(fragment) + text[start + draw(st.integers(0, 8)) :]
    return row, text


def _check(row: OutputFormat, text: str, seed: int) -> None:
    whole = read(row, [text])
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(len(text) + 1), k=5))
    assert read(row, [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]).events() == whole.events()
    assert read(row, text).events() == whole.events()
    assert read(row, text, truncated=True).events() == read(row, [text], truncated=True).events()
    for call in whole.calls:
        assert isinstance(json.loads(call["arguments"]), dict)
        assert call["name"]


@pytest.mark.parametrize("name", TOOL_FORMATS)
@settings(max_examples=settings().max_examples // 3)
@given(data=st.data(), seed=st.integers(0, 1 << 16))
def test_whatever_is_written_means_the_same_in_any_pieces(name: str, data: st.DataObject, seed: int) -> None:
    row, text = data.draw(_written(name))
    _check(row, text, seed)


def test_a_megabyte_of_arguments_in_small_pieces_arrives_as_it_is() -> None:
    """W14."""
    arguments = '{"text": "' + "ab cd\\n" * (1 << 17) + '"}'
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    reply = read(output_format("hermes"), [text[start : start + 4] for start in range(0, len(text), 4)])
    assert reply.calls == [{"name": "f", "arguments": arguments}]


def test_a_megabyte_of_arguments_that_come_before_the_name_arrives_as_it_is() -> None:
    arguments = '{"list": [' + "1, " * (1 << 18) + "1]}"
    text = f'<tool_call>{{"arguments": {arguments}, "name": "f"}}</tool_call>'
    reply = read(output_format("hermes"), [text[start : start + 4] for start in range(0, len(text), 4)])
    assert reply.calls == [{"name": "f", "arguments": arguments}]


@pytest.mark.parametrize("mark", ["<tool_call>", "</tool_call>", '<tool_call>{"name": "f", "arguments": '])
def test_marks_without_calls_are_content_however_many(mark: str) -> None:
    """W14, F24."""
    for pieces in ([mark * 5000], mark * 5000):
        assert read(output_format("hermes"), pieces).events() == {"reasoning": "", "content": mark * 5000, "calls": []}


def test_a_hundred_thousand_brackets_are_arguments_that_every_reader_of_json_takes() -> None:
    for bracket in ("[", '{"a":'):
        text = '<tool_call>{"name": "f", "arguments": {"a": ' + bracket * 100_000
        assert read(output_format("hermes"), [text]).events() == {"reasoning": "", "content": text, "calls": []}
        within = '<tool_call>{"name": "f", "arguments": {"n": 1, "a": ' + bracket * 400 + "2" + bracket * 100_000
        (call,) = read(output_format("hermes"), [within]).calls
        assert json.loads(call["arguments"])["a"]
