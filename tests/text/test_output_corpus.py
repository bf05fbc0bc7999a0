"""What models write means the same however it arrives, and what a user should get from it (F20-F31, U1, W15).

The corpus is octavo's own: each text was written down together with what it means.
"""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from octavo.text.formats.output_parser import OutputFormat, OutputParser
from octavo.text.formats.table import REASONING_FORMATS, TOOL_FORMATS
from support.output_corpus import CASES, Case, Reply, output_format, read

FORMATS = sorted({case.format_name for case in CASES})
#: Of a text's beginnings at most so many are tried; it is cut in two at every position.
MAX_CUTS = 24
#: Cases of texts that turn out to be no calls, or not the calls that they began.
BROKEN = (
    *("no value", "a value that is none", "ends after a colon", "ends in a key", "ends after a bracket"),
    *("arguments that are a list", "arguments that are prose", "no mark, broken off", "a name with an escape"),
)
#: The beginning of a mark that is a word is text, until all of it is there.
HALF_A_WORD = re.compile(r"(functool|functoo|functo|funct|func|fun|fu|f|H[a-z: ]*|t|to)$")


def _cases(format_name: str) -> list[Case]:
    return [case for case in CASES if case.format_name == format_name]


def _cuts(case: Case, most: int = MAX_CUTS) -> list[int]:
    """All positions of a short text, a sample of a long one's; another sample for another text."""
    positions = range(len(case.text) + 1)
    return sorted(random.Random(case.text).sample(positions, min(most, len(positions))))


def _pieces(text: str, cuts: list[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_text_means_what_its_author_meant(case: Case) -> None:
    assert read(case.output_format, [case.text], truncated=case.is_truncated).events() == case.events, case


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_text_means_the_same_in_two_pieces(format_name: str) -> None:
    """W15."""
    for case in _cases(format_name):
        for cut in range(len(case.text) + 1):
            reply = read(case.output_format, _pieces(case.text, [cut]), truncated=case.is_truncated)
            assert reply.events() == case.events, (case, cut)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_text_means_the_same_in_many_pieces(format_name: str) -> None:
    for case in _cases(format_name):
        assert read(case.output_format, case.text, truncated=case.is_truncated).events() == case.events, case
        rng = random.Random(case.name)
        for num_pieces in range(3, 8):
            cuts = sorted(rng.choices(range(len(case.text) + 1), k=num_pieces - 1))
            reply = read(case.output_format, _pieces(case.text, cuts), truncated=case.is_truncated)
            assert reply.events() == case.events, (case, cuts)


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_beginning_of_a_text_is_a_reply_whose_arguments_are_json(format_name: str) -> None:
    """A model may stop anywhere: each call has whole JSON for arguments, and nothing that was sent is taken back."""
    for case in _cases(format_name):
        for size in _cuts(case):
            begun, sent = OutputParser(case.output_format), Reply()
            sent.add(begun.push(case.text[:size]))
            ended = read(case.output_format, [case.text[:size]])
            halves = read(case.output_format, _pieces(case.text[:size], [size // 2]))
            assert halves.events() == ended.events(), (case, size)
            _assert_continues(sent, ended)
            for call in ended.calls:
                assert isinstance(json.loads(call["arguments"]), dict), (case, size)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_text_that_was_cut_off_anywhere_shows_the_beginning_of_what_its_whole_shows(format_name: str) -> None:
    """No mark-up of a call is content, and what there is of its arguments is a beginning of them."""
    for case in _cases(format_name):
        whole = read(case.output_format, [case.text], truncated=case.is_truncated)
        for size in range(len(case.text) + 1):
            cut_off = read(case.output_format, [case.text[:size]], truncated=True)
            begun, sent = OutputParser(case.output_format), Reply()
            sent.add(begun.push(case.text[:size]))
            sent.add(begun.finish(truncated=True))
            assert sent.events() == cut_off.events(), (case, size)
            if case.name not in BROKEN:
                assert len(cut_off.calls) <= len(whole.calls), (case, size)
                for call, whole_call in zip(cut_off.calls, whole.calls, strict=False):
                    assert call["name"] == whole_call["name"], (case, size)
                    assert whole_call["arguments"].startswith(call["arguments"]), (case, size)
                content = HALF_A_WORD.sub("", cut_off.content)
                assert whole.content.startswith(content.rstrip()), (case, size)


def test_of_a_call_that_is_cut_off_no_mark_up_is_shown_before_its_name_and_its_name_at_once() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>\n'
    text += '<tool_call>\n{"name": "add", "arguments": {"a": 1}}'
    for size in range(len(text)):
        reply = read(output_format("hermes"), [text[:size]], truncated=True)
        assert reply.content == ""
        names = [call["name"] for call in reply.calls]
        assert names == [name for name in ("f", "add") if f'"{name}"' in text[:size]]
    assert read(output_format("hermes"), ['<tool_call>\n{"name": "add"'], truncated=True).calls == [
        {"name": "add", "arguments": ""}
    ]


@pytest.mark.parametrize(
    "body",
    ['{"name": "f", "arguments": {oops}}', '{"name": "f", "arguments": {"n": oops}}',
     '{"name": "f", "arguments": {"n": }}',
     '{"name": "f", "arguments": {"list": [{oops}]}}', '{"name": "f", "arguments": "{oops}"}',
     '{"name": "f", "arguments": "{\\"n\\": 1} oops"}', '{"name": "f", "arguments": [1]}'],
)  # fmt: skip
def test_a_call_whose_arguments_are_no_json_from_the_start_is_content_whole(body: str) -> None:
    text = f"<tool_call>\n{body}\n</tool_call>"
    for pieces in ([text], text):
        assert read(output_format("hermes"), pieces).events() == {"reasoning": "", "content": text, "calls": []}


@pytest.mark.parametrize(
    ("arguments", "kept", "rest"),
    [
        ('{"n": 1, oops}', '{"n": 1}', ", oops}}"),
        ('{"n": 1, "x": oops}', '{"n": 1}', ', "x": oops}}'),
        ('{"n": 1, "obj": {"a": [oops]}}', '{"n": 1}', ', "obj": {"a": [oops]}}}'),
        ('{"list": [1, oops]}', '{"list": [1]}', ", oops]}}"),
        ('{"n": 1 "x": 2}', '{"n": 1 }', '"x": 2}}'),
    ],
)
def test_a_call_that_breaks_after_it_began_keeps_what_was_written_and_the_rest_is_content(
    arguments: str, kept: str, rest: str
) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}'
    for pieces in ([text], text):
        reply = read(output_format("hermes"), pieces)
        assert reply.calls == [{"name": "f", "arguments": kept}]
        assert reply.content == rest.strip()


def _assert_continues(sent: Reply, ended: Reply) -> None:
    assert ended.reasoning.startswith(sent.reasoning)
    assert ended.content.startswith(sent.content)
    assert len(ended.calls) >= len(sent.calls)
    for before, after in zip(sent.calls, ended.calls, strict=False):
        assert {**after, "arguments": ""} == {**before, "arguments": ""}
        assert after["arguments"].startswith(before["arguments"])


def test_every_format_has_its_corpus() -> None:
    folders = {path.name for path in (Path(__file__).parent / "corpus").iterdir()}
    assert folders == {*TOOL_FORMATS, "none"}
    rows = {case.output_format.reasoning for case in CASES}
    assert {row.name for row in rows if row is not None} >= {"qwen3", "mistral", "seed_oss", "granite"}
    assert {*REASONING_FORMATS} >= {row.name for row in rows if row is not None}


@pytest.mark.parametrize("format_name", FORMATS)
def test_at_most_as_many_calls_are_kept_as_were_asked_for(format_name: str) -> None:
    """F9: the first call alone, and the same text beside it."""
    for case in _cases(format_name):
        row = case.output_format
        first = OutputFormat(row.tools, row.reasoning, row.known_tools, row.is_thinking, max_calls=1)
        reply = read(first, _pieces(case.text, _cuts(case, 5)), truncated=case.is_truncated)
        assert reply.events() == {**case.events, "calls": case.events["calls"][:1]}, case


def test_a_grammar_that_lets_nothing_but_arguments_through_makes_one_call_of_all_text() -> None:
    """F20, F21: a named function."""
    row = output_format(None, "qwen3", whole_call="add")
    for pieces in (['<think>hm</think>\n{"a": [1]}'], '<think>hm</think>\n{"a": [1]}'):
        reply = read(row, pieces)
        assert reply.events() == {
            "reasoning": "hm",
            "content": "",
            "calls": [{"name": "add", "arguments": '{"a": [1]}'}],
        }
