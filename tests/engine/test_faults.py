"""The whole server with real weights, and what goes wrong around it: every request ends, nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.server_process import Background, Reply, ServerProcess, bound, eventually, wait_gone

POOL = ("--num-kv-blocks-override", "40", "--max-num-seqs", "16", "--max-model-len", "2048")
PROMPTS = [f"Here is a list of {n} {things}: 1." for n in (3, 7) for things in ("fruits", "rivers", "colours", "tools")]
GREEDY = {"temperature": 0, "max_tokens": 64, "ignore_eos": True}


@pytest.fixture
def start(smollm2_gguf: Path) -> Iterator[Any]:
    """Start a server; all are gone at the end of the test."""
    servers: list[ServerProcess] = []

    def start(*flags: str, **env: str) -> ServerProcess:
        servers.append(ServerProcess(smollm2_gguf, *flags, env=env))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def long_stream(server: ServerProcess, prompt: str) -> Any:
    """The events, or the reply of a request that ended before its first."""
    stream = server.stream("/v1/completions", {"prompt": prompt, "max_tokens": 500, "ignore_eos": True})
    if stream.status == 200:
        return list(stream)
    return Reply(stream.status, dict(stream.response.headers), stream.response.read())


def assert_told_of_death(result: Any) -> None:
    if isinstance(result, Reply):
        assert (result.status, result.json["error"]["code"]) == (503, "engine_dead")
    else:
        assert result[-1] == "[DONE]" and result[-2]["error"]["code"] == "engine_dead"


def test_a_small_pool_preempts_refuses_frees_and_at_last_dies_aloud(start: Any) -> None:
    """One server with a pool of 40 blocks goes through what a bad day brings; the steps are in their order."""
    server: ServerProcess = start(*POOL).wait_ready()
    a_pool_too_small_for_all_changes_no_text(server)
    a_request_larger_than_the_pool_is_refused(server)
    a_client_that_goes_frees_its_blocks(server)
    a_killed_engine_ends_every_request(server)


def a_pool_too_small_for_all_changes_no_text(server: ServerProcess) -> None:
    alone = [server.complete(prompt, **GREEDY).json["choices"][0]["text"] for prompt in PROMPTS[:2]]
    assert server.metrics()["vllm:num_preemptions_total"] == 0
    crowd = Background()
    for i in range(16):
        crowd.start(lambda prompt=PROMPTS[i % 8]: server.complete(prompt, **GREEDY))  # type: ignore[misc]
    replies = crowd.join(120)
    assert {reply.status for reply in replies} == {200}
    texts = [reply.json["choices"][0]["text"] for reply in replies]
    assert texts[:2] == alone
    assert texts[:8] == texts[8:]
    assert server.metrics()["vllm:num_preemptions_total"] > 0


def a_request_larger_than_the_pool_is_refused(server: ServerProcess) -> None:
    reply = server.complete("hello", max_tokens=1500)
    assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
    assert "1500" in reply.json["error"]["message"] and "640" in reply.json["error"]["message"]
    assert server.complete("hello", max_tokens=2).status == 200


def a_client_that_goes_frees_its_blocks(server: ServerProcess) -> None:
    streams = [server.stream("/v1/completions", {"prompt": "Once", "max_tokens": 500, "n": n}) for n in (1, 4)]
    for stream in streams:
        next(iter(stream))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 5)
    for stream in streams:
        stream.close()
    server.wait_metric("vllm:num_requests_running", lambda n: n == 0, 5)
    assert server.metrics()["vllm:kv_cache_usage_perc"] == 0


def a_killed_engine_ends_every_request(server: ServerProcess) -> None:
    requests = Background()
    for i in range(8):
        requests.start(lambda i=i: long_stream(server, PROMPTS[i]))  # type: ignore[misc]
        requests.start(lambda i=i: server.complete(PROMPTS[i], max_tokens=500, ignore_eos=True))  # type: ignore[misc]
    server.wait_metric("vllm:num_requests_running", lambda n: n >= 8)
    begin = time.monotonic()
    server.engine().kill()
    for result in requests.join(3):
        assert_told_of_death(result)
    health = eventually(lambda: server.request("GET", "/health"), 1, "an answer")
    assert health.status == 503
    assert server.wait(5) == 1
    assert time.monotonic() - begin < bound(6)


def test_a_stopped_engine_is_dead_within_its_timeout(start: Any) -> None:
    server = start().wait_ready()
    requests = Background()
    requests.start(lambda: long_stream(server, PROMPTS[0]))
    requests.start(lambda: server.complete(PROMPTS[1], max_tokens=500, ignore_eos=True))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 2)
    engine = server.engine()
    os.kill(engine.pid, signal.SIGSTOP)
    for result in requests.join(5):
        assert_told_of_death(result)
    assert server.wait(5) == 1
    wait_gone(engine, 1)


def test_term_lets_running_and_waiting_requests_finish_with_their_whole_text(start: Any) -> None:
    server = start("--max-num-seqs", "2").wait_ready()
    expected = server.complete(PROMPTS[0], **GREEDY).json
    requests = Background()
    for _ in range(4):
        requests.start(lambda: server.complete(PROMPTS[0], **GREEDY))
    server.wait_metric("vllm:num_requests_running", lambda n: n == 2)
    server.signal(signal.SIGTERM)
    server.wait_stderr("draining")
    assert server.complete(max_tokens=1).status == 503
    for reply in requests.join(30):
        assert reply.status == 200
        assert reply.json["choices"] == expected["choices"]
        assert reply.json["usage"]["completion_tokens"] == 64
    assert server.wait(5) == 0
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_while_the_weights_load_leaves_no_process(start: Any, signum: int) -> None:
    server = start()
    engine = server.engine()
    if signum == signal.SIGTERM:
        server.wait_stderr("engine: ")
    server.signal(signum)
    assert server.wait(5) != 0
    wait_gone(engine, 5)
    assert "Traceback" not in server.stderr


def test_a_killed_server_leaves_nothing_and_the_next_one_starts(start: Any) -> None:
    flags = ["--host", "127.0.0.1", "--port", "0"]
    for _ in range(2):
        server = start(*flags).wait_ready()
        flags[3] = str(server.port)
        stream = server.stream("/v1/completions", {"prompt": "Once", "max_tokens": 500})
        next(iter(stream))
        engine = server.engine()
        server.signal(signal.SIGKILL)
        wait_gone(engine, 5)


@pytest.mark.parametrize("action", ["error", "memory_error"])
def test_a_failed_allocation_or_step_fails_requests_and_never_hangs(start: Any, action: str) -> None:
    """The engine goes on, or it is dead and says so; no third state."""
    server = start(OCTAVO_FAULTS=f"step:6={action},allocate:3={action}").wait_ready()
    requests = Background()
    for prompt in PROMPTS[:4]:
        requests.start(lambda prompt=prompt: server.complete(prompt, **GREEDY))  # type: ignore[misc]
    statuses = [reply.status for reply in requests.join(30)]
    assert set(statuses) <= {200, 500, 503} and set(statuses) != {200}
    if 503 in statuses:
        assert server.wait(5) == 1
    else:
        assert server.complete(PROMPTS[0], **GREEDY).status == 200
