"""Log lines cannot be forged by what a client sends (W27)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from octavo.base.log import MAX_LINE_CHARS, escape, setup_logging


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "octavo", "uvicorn")}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


HOSTILE = ["a\nINFO forged", "a\rb", "\x1b[31mred", "\x00", "\u202egnp.exe", "\u2028", "\ud800", "\x9b31m", "\x7f"]


@pytest.mark.parametrize("text", HOSTILE)
def test_one_record_is_one_printable_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    setup_logging("info")
    logging.getLogger("octavo.server").info("user said %s", text)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 2 and lines[1] == ""
    assert lines[0].isprintable()
    assert " INFO    octavo.server: user said " in lines[0]


def test_a_line_is_at_most_4_kb(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("info")
    logging.getLogger("octavo").info("%s", "x" * 1_000_000)
    assert len(capsys.readouterr().err) < MAX_LINE_CHARS + 100


def test_a_traceback_keeps_its_lines_but_not_its_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("info")
    try:
        raise RuntimeError("evil \x1b[2J")
    except RuntimeError:
        logging.getLogger("octavo").exception("it failed")
    text = capsys.readouterr().err
    assert "\x1b" not in text and "Traceback" in text and "\\x1b[2J" in text


def test_no_line_of_a_traceback_looks_like_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("info")
    try:
        raise RuntimeError("evil\n12:00:00.000 INFO    octavo: forged")
    except RuntimeError:
        logging.getLogger("octavo").exception("it failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("it failed") and len(rest) > 3
    assert all(line.startswith("  ") for line in rest)


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("warning")
    logging.getLogger("octavo").info("hidden")
    logging.getLogger("uvicorn.error").info("hidden")
    logging.getLogger("octavo").warning("shown")
    assert capsys.readouterr().err.count("\n") == 1
    setup_logging("trace")
    logging.getLogger("uvicorn.error").log(5, "detail")
    assert "TRACE" in capsys.readouterr().err


def test_ordinary_text_is_left_alone() -> None:
    assert escape("Grüße, 世界 🙂!") == "Grüße, 世界 🙂!"
    assert escape("x" * 20, limit=10) == "xxxxxxxxxx... (20 characters)"
