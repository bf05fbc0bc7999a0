"""Log lines cannot be forged by what a client sends (W27)."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.base.config import LogSetup
from octavo.base.errors import InvalidConfig
from octavo.base.log import MAX_LINE_CHARS, current_request_id, escape, setup_logging


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


# ---------------------------------------------------------------- JSON, and other set-ups
def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.mark.parametrize("text", HOSTILE)
def test_e92_one_record_is_one_json_object(capsys: pytest.CaptureFixture[str], text: str) -> None:
    setup_logging(setup=LogSetup(log_format="json"), process="engine")
    current_request_id.set("req-1")
    logging.getLogger("octavo.server").info("user said %s", text)
    logging.getLogger("octavo.client").warning("ended", extra={"request_id": "req-2"})
    try:
        raise RuntimeError(f"evil {text}")
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("it failed")
    current_request_id.set("")
    logging.getLogger("octavo").info("%s", "x" * 1_000_000)
    written = capsys.readouterr().err
    assert written.isascii() and written.replace("\n", "").isprintable()
    said, ended, failed, long = json_lines(written)
    assert said | {"time": 0, "pid": 0} == {
        "time": 0, "level": "info", "logger": "octavo.server", "process": "engine", "pid": 0, "request_id": "req-1",
        "message": f"user said {text}",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(said["time"])) and said["pid"] == os.getpid()
    assert (ended["request_id"], ended["level"]) == ("req-2", "warning")
    assert "Traceback" in str(failed["exception"]) and f"evil {text}" in str(failed["exception"])
    assert "request_id" not in long and len(str(long["message"])) < MAX_LINE_CHARS + 100
    setup_logging(process="server")


def test_e93_a_file_of_pythons_logging_takes_the_place_of_our_setup(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "log.json"
    handler = {"class": "logging.StreamHandler", "formatter": "ours", "stream": "ext://sys.stdout"}
    settings = {
        "version": 1,
        "formatters": {"ours": {"()": "octavo.base.log.JSONFormatter"}},
        "handlers": {"out": handler},
        "loggers": {"octavo": {"level": "ERROR"}},
        "root": {"level": "INFO", "handlers": ["out"]},
    }
    file.write_text(json.dumps(settings))
    setup_logging(setup=LogSetup(log_config_file=str(file)))
    logging.getLogger("octavo.server").warning("hidden")
    logging.getLogger("octavo.server").error("shown")
    logging.getLogger("other").info("shown")
    written = capsys.readouterr()
    assert written.err == "" and [line["message"] for line in json_lines(written.out)] == ["shown", "shown"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "is no configuration of Python's logging"),
        ('{"version": 1, "handlers": {"a": {"class": "no.such.Handler"}}, "root": {"handlers": ["a"]}}', "no"),
    ],
)
def test_e93_a_file_that_cannot_be_used_is_named(content: str | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidConfig, match=rf"--log-config-file {re.escape(str(file))}.*{reason}"):
        setup_logging(setup=LogSetup(log_config_file=str(file)))


def test_without_our_setup_pythons_defaults_count(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(setup=LogSetup(configure_logging=False))
    assert logging.getLogger().handlers == []
