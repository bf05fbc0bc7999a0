"""`octavo chat` and `octavo complete` without a terminal: addresses, keys, pipes, and what goes wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import InvalidConfig
from octavo.base.ranges import RANGES
from octavo.cli import main
from octavo.cli.client import Sampling
from octavo.cli.server_address import api_url
from support.fake_api import FakeAPI, serving_fake_api

COMMANDS = ("chat", "complete")


@pytest.fixture
def api() -> Iterator[FakeAPI]:
    with serving_fake_api() as server:
        yield server


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OCTAVO_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------- one question
def test_one_question_prints_the_reply(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["chat", "--url", api.url, "-q", "Hi?", "--system-prompt", "Be brief.", "--max-tokens", "7"])
    assert (code, capsys.readouterr().out) == (0, "Hello!\n")
    (request,) = api.requests
    assert request["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    assert (request["model"], request["max_tokens"], request["stream"]) == ("first", 7, True)
    assert "temperature" not in request


def test_images_go_with_the_first_message(api: FakeAPI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.jpg", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    words = ["chat", "--url", api.url, "-q", "What?", "--image", str(first), "--image", str(second)]
    assert (main(words), capsys.readouterr().out) == (0, "Hello!\n")
    (message,) = api.requests[0]["messages"]
    urls = [part["image_url"]["url"] for part in message["content"][:-1]]
    assert urls == ["data:image/jpeg;base64,b25l", "data:image/png;base64,dHdv"]
    assert message["content"][-1] == {"type": "text", "text": "What?"}
    assert main([*words[:-1], str(tmp_path / "missing")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_a_text_is_continued(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "--url", api.url + "/", "--quick=Once", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Hello!\n"
    assert (api.requests[0]["prompt"], api.requests[0]["temperature"]) == ("Once", 0.0)


@pytest.mark.parametrize("flag", ["--model", "--model-name"])
def test_the_model_may_be_named(api: FakeAPI, flag: str) -> None:
    assert main(["complete", "--url", api.url, flag, "second", "-q", "x"]) == 0
    assert (api.requests[0]["model"], api.paths) == ("second", ["/v1/completions"])


def test_sampling_settings_reach_the_server(api: FakeAPI) -> None:
    given = {
        "temperature": 0.5, "max_tokens": 3, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": -4,
        "presence_penalty": 1.0, "frequency_penalty": -1.0, "repetition_penalty": 1.1,
        "repeat_last_n": 64, "typical_p": 0.9, "top_n_sigma": 1.5, "dynatemp_range": 0.3, "xtc_probability": 0.5,
        "xtc_threshold": 0.2, "dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 3, "mirostat": 2,
        "mirostat_tau": 4.0, "mirostat_eta": 0.2,
    }  # fmt: skip
    assert set(given) == {f.name for f in dataclasses.fields(Sampling)}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert main(["chat", "--url", api.url, "-q", "x", *words]) == 0
    assert {name: api.requests[0][name] for name in given} == given


def test_the_bounds_of_settings_are_those_of_the_server() -> None:
    for field in dataclasses.fields(Sampling):
        wanted, bounds = RANGES[field.name], field.metadata
        assert bounds.get("high") == wanted.high
        assert bounds.get("low") == wanted.low


def test_stats_go_to_stderr(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--url", api.url, "-q", "x", "--stats"]) == 0
        captured = capsys.readouterr()
        assert captured.out == "Hello!\n"
        assert captured.err.startswith("11 prompt tokens (4 cached), 3 tokens, the first after ")
        assert captured.err.endswith(" tokens/s\n")


# ---------------------------------------------------------------- pipes
def piped(command: str, api: FakeAPI, stdin: bytes, *words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-m", "octavo", command, "--url", api.url, *words]
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "TERM": "xterm", **env}
    return subprocess.run(program, input=stdin, capture_output=True, env=environment, timeout=120, check=False)


def test_what_is_piped_is_one_message_and_the_reply_alone_comes_out(api: FakeAPI) -> None:
    api.thoughts, api.reply = ["Hm."], ["Gr\u00fc\u00dfe ", "\U0001f642\n"]
    run = piped("chat", api, "/help\nZwei  \u00e9\n\n".encode())
    assert (run.returncode, run.stdout.decode(), run.stderr) == (0, "Gr\u00fc\u00dfe \U0001f642\n", b"")
    assert api.requests[0]["messages"] == [{"role": "user", "content": "/help\nZwei  \u00e9\n"}]
    run = piped("complete", api, b"Once\n")
    assert (run.returncode, run.stdout.decode(), run.stderr) == (0, "Gr\u00fc\u00dfe \U0001f642\n", b"")
    assert api.requests[1]["prompt"] == "Once"


def test_pipes_are_utf_8_in_any_locale(api: FakeAPI) -> None:
    api.reply = ["\U0001f642"]
    run = piped("chat", api, "\u00e9\u4e2d".encode() + b"\xff", PYTHONIOENCODING="latin-1")
    assert (run.returncode, run.stdout.decode()) == (0, "\U0001f642\n")
    assert api.requests[0]["messages"][0]["content"] == "\u00e9\u4e2d\ufffd"


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_to_send_is_told(api: FakeAPI, command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    assert main([command, "--url", api.url]) == 2
    assert capsys.readouterr().err == (
        f"octavo {command}: error: nothing to send: stdin is empty; --quick TEXT gives it on the command line\n"
    )
    assert api.paths == []


# ---------------------------------------------------------------- keys and addresses
def test_the_key_comes_from_the_flag_then_the_environment(api: FakeAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(*words: str) -> set[str | None]:
        api.keys.clear()
        assert main(["complete", "--url", api.url, "-q", "x", *words]) == 0
        return set(api.keys)

    assert keys() == {"Bearer EMPTY"}
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    assert keys() == {"Bearer openai"}
    monkeypatch.setenv("OCTAVO_API_KEY", "octavo")
    assert keys() == {"Bearer octavo"}
    assert keys("--api-key", "flag") == {"Bearer flag"}
    assert main(["complete", "--url", api.url, "-q", "x", "--api-key", "a\nb"]) == 2


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("localhost:8000/", "http://localhost:8000/v1"),
        ("localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("HTTPS://h/v1/", "https://h/v1"),
        ("https://h", "https://h/v1"),
        (" http://[::1]:8000 ", "http://[::1]:8000/v1"),
        ("https://h/api/v3/", "https://h/api/v3"),
    ],
)
def test_an_address_may_be_written_in_many_ways(text: str, url: str) -> None:
    assert api_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "ftp://x", "http://", "http://h:port", "http://h:99999", "http://[::1", "u:p@h:1", "h:1/v1?x=1", "h\n:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        api_url(text)
    assert caught.value.message == f"--url must be HOST:PORT or an http or https address; got {text!r}"


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_end_v1_may_be_left_out(api: FakeAPI, ending: str) -> None:
    assert main(["chat", "--url", api.address + ending, "-q", "x"]) == 0
    assert api.paths == ["/v1/models", "/v1/chat/completions"]


# ---------------------------------------------------------------- what goes wrong
def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["chat", "-q", "x", *words]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("octavo chat: error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("octavo chat: error: ").rstrip()


def test_errors_are_one_line(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    api.error_in_stream = True
    assert error_of(capsys, "--url", api.url) == "the engine died"
    api.error_in_stream, api.ends_early = False, True
    assert error_of(capsys, "--url", api.url) == "the server ended the reply early"
    api.refusal = (400, b'{"error": {"message": "too\\nlong\\u001b[31m"}}')
    assert error_of(capsys, "--url", api.url) == "the server refused (400): too long [31m"
    api.refusal = (404, b'{"error": {"message": "no model x"}}')
    assert error_of(capsys, "--url", api.url) == "the server refused (404): no model x"
    api.refusal = (502, b"<html>")
    assert error_of(capsys, "--url", api.url) == "the server refused (502): <html>"


def test_a_server_that_wants_a_key_says_so(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    api.models = (401, "application/json", b'{"error": {"message": "no such key"}}')
    assert error_of(capsys, "--url", api.url) == (
        "the server wants an API key (401): give --api-key, or set OCTAVO_API_KEY or OPENAI_API_KEY"
    )
    assert error_of(capsys, "--url", api.url, "--api-key", "k") == (
        "the server does not take this API key (401): no such key"
    )


def test_a_server_that_is_not_ready_says_so(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    api.models = (503, "application/json", b'{"error": {"message": "the model is loading"}}')
    assert error_of(capsys, "--url", api.url) == "the server is not ready (503): the model is loading"


def test_what_is_no_openai_server_is_told(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    other = f"http://{api.address}/other"
    assert error_of(capsys, "--url", other) == (
        f"{other} is not an OpenAI-compatible API (404): --url must be the address that has /models"
    )
    api.models = (404, "application/json", b'{"error": {"message": "There is no such route."}}')
    assert error_of(capsys, "--url", api.url).startswith(f"{api.url} is not an OpenAI-compatible API (404): ")
    for kind, body in (("text/html", b"<html>"), ("application/json", b"[]"), ("application/json", b'{"data": [1]}')):
        api.models = (200, kind, body)
        assert error_of(capsys, "--url", api.url) == (
            f"{api.url} is not an OpenAI-compatible server: /models gives {kind}"
        )
    api.models = (200, "application/json", b'{"data": []}')
    assert error_of(capsys, "--url", api.url) == f"{api.url} lists no model: name one with --model"
    api.models = (308, "text/html", b"")
    assert error_of(capsys, "--url", api.url) == f"{api.url} has moved (308): give --url https://elsewhere/v1"
    # TLS towards a server without.
    assert error_of(capsys, "--url", f"https://{api.address}") == (
        f"https://{api.address} does not speak TLS: is it an http:// address?"
    )


def test_what_speaks_no_http_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(1 << 16)

        thread = threading.Thread(target=greet)
        thread.start()
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        assert error_of(capsys, "--url", where) == f"what listens at http://{where} does not speak HTTP"
        thread.join()


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    assert error_of(capsys, "--url", f"http://127.0.0.1:{port}/v1") == (
        f"no answer from http://127.0.0.1:{port}: Connection refused. Is `octavo serve` running there?"
    )
    assert main(["chat", "--url", "ftp://x", "-q", "x"]) == 2
    assert main(["chat", "--rul", "x"]) == 2
    assert "did you mean --url?" in capsys.readouterr().err


def test_a_stream_of_other_things_is_an_error(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    api.reply = []
    for event in ("[]", "{nonsense", '{"choices": [1]}', '{"choices": [{"text": 1}]}', '{"usage": "none"}'):
        api.refusal = (200, f"data: {event}\n\n".encode())
        assert error_of(capsys, "--url", api.url) == f"the server sent an unreadable event: {event}".replace('"', "'")
    api.refusal = (200, json.dumps({"choices": []}).encode())
    assert error_of(capsys, "--url", api.url) == "the server ended the reply early"


# ---------------------------------------------------------------- where the reply cannot go
def shell(api: FakeAPI, rest: str) -> subprocess.CompletedProcess[str]:
    """`octavo chat` in a shell, with what follows it on the line."""
    script = f'echo hi | "$0" -m octavo chat --url {api.address} {rest}'
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    words = ["bash", "-c", script, sys.executable]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_full_disk_is_one_line(api: FakeAPI) -> None:
    run = shell(api, "> /dev/full; echo $? >&2")
    assert run.stderr == "octavo chat: error: cannot write the reply: No space left on device\n1\n"


def test_closed_streams_are_no_error(api: FakeAPI) -> None:
    assert shell(api, ">&- ; echo $? >&2").stderr == "0\n"
    assert shell(api, "--stats 2>&-").stdout == "Hello!\n"


def test_a_reader_that_has_had_enough_is_no_error(api: FakeAPI) -> None:
    api.reply = ["line\n"] * 20_000
    api.never_ends = True  # only the broken pipe can end it
    run = shell(api, "| head -n 1; echo ${PIPESTATUS[1]}")
    assert (run.stdout, run.stderr) == ("line\n141\n", "")
