"""A command line of vLLM, as people write it, against the whole server; and what its administrators do."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.client_fakes import TOKENIZER
from support.server_process import ServerProcess, Stream, eventually

FLAGS = [
    "--tensor-parallel-size", "1", "--gpu-memory-utilization", "0.9", "--swap-space", "4", "--max-num-seqs", "16",
    "--block-size", "8", "--dtype", "auto", "--enable-prefix-caching",
    "--enable-chunked-prefill", "--disable-log-requests", "--guided-decoding-backend",
    "outlines", "--use-v2-block-manager", "--allow-credentials", "--preemption-mode", "recompute", "-O2",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("model")
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    keys = directory / "keys"
    keys.write_text("shop  # the web shop\nscraper\n")
    env = {
        "OCTAVO_ADMIN_API_KEY": "boss",
        "FAKE_STEP_SECONDS": "0.02",
        "PROMETHEUS_MULTIPROC_DIR": str(directory / "nowhere"),
        "VLLM_PLUGINS": "some",
        "VLLM_PORT": "tcp://10.0.0.1:80",
    }
    flags = [*FLAGS, "--api-key-file", str(keys), "--public-paths", "/load", "/metrics"]
    with ServerProcess(directory, *flags, fake=True, env=env) as process:
        yield process.wait_ready()


def ask(server: ServerProcess, method: str, path: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
    """Status, and the body where there is one."""
    connection = server.connect()
    try:
        headers = {"content-type": "application/json"} | ({"x-api-key": key} if key else {})
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        reply = connection.getresponse()
        data = reply.read()
        is_json = reply.headers.get_content_type() == "application/json"
        return reply.status, json.loads(data) if is_json else data
    finally:
        connection.close()


def test_the_start_tells_what_was_accepted_and_what_has_no_effect(server: ServerProcess) -> None:
    (line,) = (line for line in server.stderr.splitlines() if "accepted, nothing to do: " in line)
    for words in (
        "--tensor-parallel-size 1", "--block-size 8 (as 16)",
        "--guided-decoding-backend outlines", "--use-v2-block-manager", "--preemption-mode recompute",
        "--optimization-level 2", "PROMETHEUS_MULTIPROC_DIR",
    ):  # fmt: skip
        assert words in line
    warnings = [line for line in server.stderr.splitlines() if " WARNING " in line]
    assert len(warnings) == 2, warnings
    assert "--allow-credentials has no effect without --allowed-origins" in server.stderr
    assert "VLLM_PLUGINS has no effect" in server.stderr
    assert "shop" not in server.stderr and "boss" not in server.stderr


def test_keys_of_the_file_and_public_paths(server: ServerProcess) -> None:
    assert ask(server, "GET", "/v1/models")[0] == 401
    assert ask(server, "GET", "/v1/models", "scraper")[0] == 200
    assert ask(server, "GET", "/load") == (200, {"server_load": 0})
    assert ask(server, "GET", "/metrics")[0] == 200


def test_an_administrator_ends_a_request_and_resets_the_cache(server: ServerProcess) -> None:
    assert ask(server, "POST", "/reset_prefix_cache", "shop")[0] == 403
    assert ask(server, "POST", "/reset_prefix_cache", "boss") == (200, b"")
    info = ask(server, "GET", "/server_info", "boss")[1]
    assert info["config"]["cache"]["block_size"] == 16 and info["config"]["server"]["api_key"] == "***"

    connection: http.client.HTTPConnection = server.connect()
    body = {"prompt": "hello", "max_tokens": 4000, "stream": True, "request_id": "long"}
    headers = {"content-type": "application/json", "authorization": "Bearer shop"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    stream = Stream(connection, connection.getresponse())
    events: list[Any] = []
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    eventually(lambda: ask(server, "GET", "/load")[1]["server_load"] == 1 or None, 20, "the request")
    assert ask(server, "POST", "/abort_requests", "boss", {"request_ids": ["long"]}) == (200, {"aborted": 1})
    reader.join(60)
    stream.close()
    assert events[-2]["error"]["code"] == "request_aborted"
    assert ask(server, "GET", "/load")[1] == {"server_load": 0}


def test_middleware_that_is_not_there_ends_the_start_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--middleware", "no_such_module.Class", fake=True) as process:
        assert process.wait(60) == 2
        assert "--middleware no_such_module.Class: there is no module no_such_module" in process.stderr
