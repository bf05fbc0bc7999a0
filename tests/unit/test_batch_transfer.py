"""Inputs from addresses and results to them: what is tried again, what is not, and what is shown of an address."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.base.errors import InvalidConfig
from octavo.cli.run_batch import run
from octavo.offline.batch.config import shown
from octavo.offline.batch.lines import BatchError
from octavo.offline.batch.transfer import RETRY_SECONDS, fetch, put
from support.file_server import FileServer, file_server

DATA = b"line\n" * 1000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.mark.parametrize("refusals", [[], [503, 429], [0], [500, 0]], ids=str)
def test_a_file_comes_whole(server: FileServer, refusals: list[int]) -> None:
    """Also where the connection was cut in the middle, which looks like an end."""
    server.files["/in?sig=x"] = DATA
    server.refusals = refusals.copy()
    waits: list[float] = []
    file = io.BytesIO(b"what was there before is gone" * 1000)
    fetch(server.url("/in?sig=x"), file, waits.append)
    assert file.getvalue() == DATA
    assert waits == list(RETRY_SECONDS[: len(refusals)])


@pytest.mark.parametrize("refusals", [[], [503, 500]], ids=str)
def test_a_file_is_put_whole(server: FileServer, refusals: list[int], tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(DATA)
    server.refusals = refusals.copy()
    put(path, server.url("/out?sig=x"), lambda seconds: None)
    assert server.files == {"/out?sig=x": DATA}
    assert server.headers[-1]["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 1 + len(RETRY_SECONDS))])
def test_a_failure_says_what_was_answered_and_not_the_signature(server: FileServer, status: int, tries: int) -> None:
    server.refusals = [status] * 10
    with pytest.raises(BatchError, match=rf"GET http://127.0.0.1:\d+/in failed: it answered {status} [A-Z]") as caught:
        fetch(server.url("/in?sig=secret"), io.BytesIO(), lambda seconds: None)
    assert "secret" not in caught.value.message
    assert len(server.requests) == tries


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(BatchError, match="Connection refused"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/in", io.BytesIO(), lambda seconds: None)


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown("https://me:pass@host:1/a/b?sig=1#x") == "https://host:1/a/b"
    assert shown("HTTP://host") == "HTTP://host"
    assert shown("dir/file?x") == "dir/file?x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--input-file"),
        (["-i", "a"], "--output-file"),
        (["-i", "s3://a", "-o", "b"], "only http and https"),
        (["-i", "a", "-o", "b", "--output-tmp-dir", "c"], "--output-tmp-dir has no use"),
        (["-i", "a", "-o", "b", "--port", "1"], "need --enable-metrics"),
        (["-i", "a", "-o", "b", "--url", "h"], "need --enable-metrics"),
        (["-i", "nowhere", "-o", "b"], "--input-file nowhere: there is no such file"),
        (["-i", "a", "-o", "b", "--api-key", "k"], "unknown flag --api-key"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_loaded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig) as caught:
        run(words)
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_input_and_output_are_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("x")
    with pytest.raises(InvalidConfig, match="the same file"):
        run(["-i", "a", "-o", "./a"])
    assert (tmp_path / "a").read_text() == "x"
