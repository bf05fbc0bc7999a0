"""Each code that is cited has one row in docs/behaviour.md or docs/reliability.md, and a row names tests that exist."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from behaviour_table import DOCUMENT, NOT_BUILT, ROOT, Row, citations, codes, codes_of_name, exists, rows, sources

RELIABILITY = ROOT / "docs" / "reliability.md"
ROWS = [row for path in (DOCUMENT, RELIABILITY) for row in rows(path.read_text())]


def test_every_code_that_is_cited_has_a_row() -> None:
    cited = {str(RELIABILITY): codes(RELIABILITY.read_text())}
    cited |= {str(path): set(citations(path)) for folder in ("src", "tests") for path in sources(folder)}
    known = {row.code for row in ROWS}
    assert {path: found - known for path, found in cited.items() if found - known} == {}


def test_no_code_is_there_twice() -> None:
    assert [code for code, count in Counter(row.code for row in ROWS).items() if count > 1] == []


def test_documents_for_users_carry_no_codes() -> None:
    known = {row.code for row in ROWS}
    documents = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {DOCUMENT, RELIABILITY}
    for path in documents:
        bracketed = re.findall(r"\(((?:[A-Z]\d{1,2}(?:, )?)+)\)", path.read_text())
        assert not {code for text in bracketed for code in codes(text)} & known, path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
def test_a_row_names_tests_that_exist(row: Row) -> None:
    patterns = re.findall(r"`([^`]+)`", row.tests)
    assert patterns or row.tests == NOT_BUILT, "run `python tests/behaviour_table.py`"
    assert [pattern for pattern in patterns if not exists(pattern)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# E50: framing", {"E50"}),
        ("S1 to S3, G5.", {"S1", "S2", "S3", "G5"}),
        ("(F9-F10, U1)", {"F9", "F10", "U1"}),
        ("a table of F16", set()),
        ("Zen4, H100, v1", set()),
    ],
)
def test_codes_in_a_sentence(text: str, expected: set[str]) -> None:
    assert codes(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_e50_framing_is_golden", {"E50"}),
        ("test_s1_to_s3_t5_draws", {"S1", "S2", "S3", "T5"}),
        ("test_w01_t4_without_a_template", {"W01", "T4"}),
        ("test_the_w1_load", set()),
    ],
)
def test_codes_in_the_name_of_a_test(name: str, expected: set[str]) -> None:
    assert codes_of_name(name) == expected
