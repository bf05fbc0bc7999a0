"""Start and end of `octavo serve`, from outside: the real server, with the fake model's engine process."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.client_fakes import write_model
from support.server_process import Background, Reply, ServerProcess, Stream, bound, eventually, wait_gone

SLOW = {"FAKE_STEP_SECONDS": "0.02"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of bytes."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(model: Path) -> Iterator[Any]:
    """Start a server; all are gone at the end of the test."""
    servers: list[ServerProcess] = []

    def start(*flags: str, **env: str) -> ServerProcess:
        servers.append(ServerProcess(model, *flags, fake=True, env=env))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def events_of(server: ServerProcess, max_tokens: int) -> list[Any]:
    return list(server.stream("/v1/completions", {"prompt": "hello", "max_tokens": max_tokens}))


# ---------------------------------------------------------------- start
def test_the_ready_line_tells_the_name_and_where(start: Any, model: Path) -> None:
    server = start().wait_ready()
    assert [card["id"] for card in server.request("GET", "/v1/models").json["data"]] == [str(model), "tiny"]
    assert server.request("GET", "/health").status == 200
    assert server.complete(max_tokens=5).json["usage"]["completion_tokens"] == 5
    for part in (f"model {model}: fake", "device fake", "context 4096 tokens", "KV cache", "started in"):
        assert part in server.stderr
    server.signal(signal.SIGTERM)
    assert server.wait(5) == 0


def test_a_port_in_use_ends_the_start_before_the_model_is_read(start: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start("--host", "127.0.0.1", "--port", str(taken.getsockname()[1]), FAKE_LOAD_SECONDS="30")
        assert server.wait(10) == 1
    assert "the port is in use" in server.stderr
    assert "Traceback" not in server.stderr and "engine:" not in server.stderr


def test_a_bad_host_ends_the_start_with_its_name(start: Any) -> None:
    server = start("--host", "192.0.2.1", "--port", "0")
    assert server.wait(10) == 1
    assert "192.0.2.1" in server.stderr and "Traceback" not in server.stderr


def test_a_socket_file_is_served_and_removed(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    server = start("--uds", str(path)).wait_ready()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    server.signal(signal.SIGTERM)
    assert server.wait(5) == 0
    assert not path.exists()


def test_a_broken_tokenizer_ends_the_start_though_the_engine_still_loads(
    start: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    server = start("--tokenizer", str(tmp_path), FAKE_LOAD_SECONDS="60")
    assert server.wait(10) == 1
    assert "tokenizer" in server.stderr and "Traceback" not in server.stderr


def test_an_engine_that_ends_while_it_loads_is_an_error_with_its_reason(start: Any) -> None:
    server = start(OCTAVO_FAULTS="load:1=exit")
    assert server.wait(10) == 1
    assert "ended while it started: it exited with code 70" in server.stderr


def test_an_engine_that_fails_to_load_says_why(start: Any) -> None:
    server = start(OCTAVO_FAULTS="load:1=memory_error")
    assert server.wait(10) == 1
    assert "error: MemoryError" in server.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_while_the_model_loads_leaves_nothing(start: Any, signum: int) -> None:
    server = start(FAKE_LOAD_SECONDS="60")
    engine = server.engine()
    if signum != signal.SIGKILL:
        server.wait_stderr("engine: weights")
    begin = time.monotonic()
    server.signal(signum)
    assert server.wait(5) == (-signum if signum == signal.SIGKILL else 128 + signum)
    wait_gone(engine, 5 - (time.monotonic() - begin))
    assert "Traceback" not in server.stderr


def test_nobody_can_connect_while_the_model_loads(start: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start("--host", "127.0.0.1", "--port", str(port), FAKE_LOAD_SECONDS="60")
    server.wait_stderr("engine: weights")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 2)


def test_a_server_starts_again_on_its_port_after_every_kind_of_end(start: Any) -> None:
    flags = ("--host", "127.0.0.1", "--port", "0")
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        server = start(*flags, **SLOW).wait_ready()
        flags = ("--host", "127.0.0.1", "--port", str(server.port))
        stream = server.stream("/v1/completions", {"prompt": "hello", "max_tokens": 20})
        next(iter(stream))
        engine = server.engine()
        server.signal(signum)
        server.wait(10)
        wait_gone(engine, 5)


# ---------------------------------------------------------------- drain
def test_e21_term_finishes_what_runs_and_waits_and_refuses_the_new(start: Any) -> None:
    server = start("--max-num-seqs", "2", **SLOW).wait_ready()
    old = Background()
    for _ in range(3):
        old.start(lambda: events_of(server, 60))
        old.start(lambda: server.complete(max_tokens=60))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 2)
    server.wait_metric("vllm:num_requests_waiting", lambda n: n == 4)
    server.signal(signal.SIGTERM)
    server.wait_stderr("draining 6 sequences")
    refused = server.complete(max_tokens=1)
    assert (refused.status, refused.headers.get("retry-after")) == (503, "5")
    assert refused.json["error"]["code"] == "shutting_down"
    assert server.request("GET", "/ready").status == 503
    assert server.request("GET", "/health").status == 200
    for result in old.join(30):
        if isinstance(result, Reply):
            assert result.json["usage"]["completion_tokens"] == 60
        else:
            assert result[-1] == "[DONE]" and result[-2]["choices"][0]["finish_reason"] == "length"
    assert server.wait(5) == 0


def test_e21_what_is_not_finished_in_time_ends_with_an_error(start: Any) -> None:
    server = start("--shutdown-timeout", "0.5", **SLOW).wait_ready()
    old = Background()
    old.start(lambda: events_of(server, 4000))
    old.start(lambda: server.complete(max_tokens=4000))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 2)
    begin = time.monotonic()
    server.signal(signal.SIGTERM)
    stream, plain = old.join(10)
    assert stream[-1] == "[DONE]" and stream[-2]["error"]["code"] == "shutting_down"
    assert plain.status == 503
    assert server.wait(5) == 0
    assert time.monotonic() - begin < bound(0.5 + 2.5)


def test_a_second_signal_ends_at_once(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    old = Background()
    old.start(lambda: events_of(server, 4000))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 1)
    engine = server.engine()
    server.signal(signal.SIGTERM)
    server.wait_stderr("draining")
    begin = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait(2) == 128 + signal.SIGTERM
    wait_gone(engine, 2 - (time.monotonic() - begin))
    old.join(5)
    assert "Traceback" not in server.stderr


def test_an_idle_server_ends_at_once_and_keeps_quiet(start: Any) -> None:
    server = start().wait_ready()
    idle = server.connect()
    idle.request("GET", "/health")
    idle.getresponse().read()  # a keep-alive connection without a request
    begin = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait(5) == 0
    assert time.monotonic() - begin < bound(2)
    assert "Traceback" not in server.stderr and "octavo engine:" not in server.stderr


# ---------------------------------------------------------------- death
def test_e15_when_the_engine_is_killed_every_request_is_told_and_the_server_ends(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    open_requests = Background()
    for _ in range(4):
        open_requests.start(lambda: events_of(server, 4000))
        open_requests.start(lambda: server.complete(max_tokens=4000))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 8)
    begin = time.monotonic()
    server.engine().kill()
    health = eventually(lambda: _bad_health(server), 2, "a bad health")
    assert health.status == 503
    for result in open_requests.join(3):
        if isinstance(result, Reply):
            assert (result.status, result.json["error"]["code"]) == (503, "engine_dead")
        else:
            assert result[-1] == "[DONE]" and result[-2]["error"]["code"] == "engine_dead"
    assert server.wait(5) == 1
    assert time.monotonic() - begin < bound(5)
    assert "SIGKILL" in server.stderr


def test_when_an_idle_engine_is_killed_health_says_so_and_the_server_ends(start: Any) -> None:
    server = start().wait_ready()
    server.engine().kill()
    assert eventually(lambda: _bad_health(server), 2, "a bad health").json["error"]["code"] == "engine_dead"
    assert server.wait(5) == 1


def _bad_health(server: ServerProcess) -> Reply | None:
    reply = server.request("GET", "/health")
    return reply if reply.status != 200 else None


def test_a_stopped_engine_is_noticed(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    open_requests = Background()
    open_requests.start(lambda: events_of(server, 4000))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 1)
    engine = server.engine()
    begin = time.monotonic()
    os.kill(engine.pid, signal.SIGSTOP)
    (events,) = open_requests.join(5)
    assert events[-2]["error"]["code"] == "engine_dead"
    assert server.wait(5) == 1
    assert time.monotonic() - begin < bound(6)
    wait_gone(engine, 1)


def test_when_the_server_is_killed_the_engine_goes_too(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    stream = server.stream("/v1/completions", {"prompt": "hello", "max_tokens": 4000})
    next(iter(stream))
    engine = server.engine()
    server.signal(signal.SIGKILL)
    wait_gone(engine, 5)


def test_a_failed_step_is_the_end_of_the_server_or_of_the_step_never_silence(start: Any) -> None:
    server = start(OCTAVO_FAULTS="step:5=error", **SLOW).wait_ready()
    reply = server.complete(max_tokens=20)
    assert reply.status in (500, 503)
    if server.request("GET", "/health").status == 200:
        assert server.complete(max_tokens=20).status == 200
    else:
        assert server.wait(5) == 1


def test_a_step_that_hangs_is_noticed(start: Any) -> None:
    server = start("--engine-step-timeout", "1", OCTAVO_FAULTS="step:5=hang", **SLOW).wait_ready()
    reply = server.complete(max_tokens=20)
    assert (reply.status, reply.json["error"]["code"]) == (503, "engine_dead")
    assert server.wait(5) == 1


# ---------------------------------------------------------------- clients that go
@pytest.mark.parametrize("when", ["queued", "first token", "between tokens", "plain"])
def test_a_client_that_goes_frees_its_work(start: Any, when: str) -> None:
    server = start("--max-num-seqs", "1", **SLOW).wait_ready()
    fields = {"prompt": "hello" * 20, "max_tokens": 3000}
    other: Stream | None = None
    if when == "queued":
        other = server.stream("/v1/completions", fields)
        server.wait_metric("vllm:num_requests_running", lambda n: n == 1)
    if when in ("queued", "plain"):
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps(fields), {"content-type": "application/json"})
        server.wait_metric("vllm:num_requests_running", lambda n: n == 1)
        if when == "queued":
            server.wait_metric("vllm:num_requests_waiting", lambda n: n == 1)
        connection.close()
    else:
        stream = server.stream("/v1/completions", fields)
        events = iter(stream)
        for _ in range(1 if when == "first token" else 5):
            next(events)
        stream.close()
    server.wait_metric("vllm:num_requests_waiting", lambda n: n == 0, 2)
    if other is not None:
        other.close()
    server.wait_metric("vllm:num_requests_running", lambda n: n == 0, 2)
    server.wait_metric("vllm:kv_cache_usage_perc", lambda share: share == 0, 2)


# ---------------------------------------------------------------- service managers
@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager, as `NOTIFY_SOCKET` names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(bound(60))
        yield sock


def told(manager: socket.socket) -> dict[str, str]:
    """The next datagram."""
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_a_service_manager_is_told_when_the_server_listens_and_when_it_drains(
    start: Any, manager: socket.socket
) -> None:
    server = start("--shutdown-timeout", "20", NOTIFY_SOCKET=manager.getsockname(), **SLOW)
    ready = told(manager)
    server.wait_ready()
    assert ready["READY"] == "1" and ready["STATUS"].endswith(f" at {server.url}")
    assert server.request("GET", "/ready").status == 200
    old = Background()
    old.start(lambda: events_of(server, 40))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 1)
    server.signal(signal.SIGTERM)
    # Past the time for a drain and for what follows it, whatever the unit says.
    assert told(manager) == {"STOPPING": "1", "STATUS": "draining 1 sequences", "EXTEND_TIMEOUT_USEC": "30000000"}
    assert old.join(30)[0][-1] == "[DONE]"
    assert server.wait(5) == 0


def test_a_service_manager_is_told_of_the_engines_death(start: Any, manager: socket.socket) -> None:
    server = start(NOTIFY_SOCKET=manager.getsockname()).wait_ready()
    assert told(manager)["READY"] == "1"
    server.engine().kill()
    assert told(manager)["STATUS"] == "the engine died"
    assert server.wait(5) == 1


def test_a_service_manager_that_is_not_there_is_logged_and_changes_nothing(start: Any, tmp_path: Path) -> None:
    server = start(NOTIFY_SOCKET=str(tmp_path / "nobody")).wait_ready()
    assert server.request("GET", "/ready").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(5) == 0
    assert f"the service manager was not told (NOTIFY_SOCKET={tmp_path / 'nobody'})" in server.stderr
