"""What models write means the same however it arrives, and what a user should get from it (F20-F31, U1, W15).

The corpus is octavo's own: each text was written down together with what it means.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from octavo.text.formats.table import REASONING_FORMATS, TOOL_FORMATS
from octavo.text.output_parser import OutputFormat, OutputParser
from output_corpus import CASES, Case, Reply, output_format, read

FORMATS = sorted({case.format_name for case in CASES})
#: Of a text's beginnings at most so many are tried; it is cut in two at every position.
MAX_CUTS = 24


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
def test_a_text_that_was_cut_off_adds_nothing_that_its_whole_has_not(format_name: str) -> None:
    """Cut off by a limit, what the reply has of a call's arguments is a beginning of them."""
    for case in _cases(format_name):
        for size in _cuts(case, 12):
            begun, sent = OutputParser(case.output_format), Reply()
            sent.add(begun.push(case.text[:size]))
            cut_off = read(case.output_format, case.text[:size], truncated=True)
            sent.add(begun.finish(truncated=True))
            assert sent.events() == cut_off.events(), (case, size)
            whole = read(case.output_format, [case.text])
            for call, whole_call in zip(cut_off.calls, whole.calls, strict=False):
                assert call["name"] == whole_call["name"], (case, size)
                assert whole_call["arguments"].startswith(call["arguments"]), (case, size)


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
