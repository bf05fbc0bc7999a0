"""Traces, logs, times and profiles of a server, from outside: the real server with the fake model's engine process."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.client_fakes import TOKENIZER
from support.server_process import ServerProcess, eventually
from support.trace_receiver import TraceReceiver, plain

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    path.mkdir()
    TOKENIZER._backend.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return path


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceReceiver]:
    receiver = TraceReceiver("http/protobuf")
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def server(directory: Path, collector: TraceReceiver) -> Iterator[ServerProcess]:
    flags = ["--otlp-traces-endpoint", collector.endpoint, "--otlp-traces-protocol", "http/protobuf",
             "--collect-detailed-traces", "model,worker", "--log-format", "json", "--enable-log-requests",
             "--max-log-len", "6", "--uvicorn-log-level", "debug", "--admin-api-key", "boss",
             "--profiler-dir", str(directory.parent / "profiles")]  # fmt: skip
    with ServerProcess(directory, *flags, fake=True, env={"OTEL_BSP_SCHEDULE_DELAY": "50"}) as process:
        yield process.wait_ready()


def post(server: ServerProcess, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, json.dumps(body) if body is not None else b"", sent)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, json.loads(data) if data else None


def log_of(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.stderr.splitlines()]


def test_e90_e94_e95_a_request_leaves_trace_lines_and_times(server: ServerProcess, collector: TraceReceiver) -> None:
    traceparent = f"00-{TRACE}-{PARENT}-01"
    body = {"prompt": "one two three", "max_tokens": 5, "request_id": "shop-7", "include_metrics": True}
    status, reply = post(server, "/v1/completions", body, traceparent=traceparent)
    assert status == 200
    metrics = reply["metrics"]
    assert metrics["queue_time_ms"] + metrics["prefill_time_ms"] == pytest.approx(
        metrics["time_to_first_token_ms"], abs=0.01
    )
    assert metrics["time_to_first_token_ms"] + metrics["generation_time_ms"] <= metrics["total_time_ms"] + 0.01
    assert metrics["mean_itl_ms"] == pytest.approx(metrics["generation_time_ms"] / 4, abs=0.01)
    assert metrics["cached_tokens"] == 0

    span = eventually(lambda: collector.spans[0] if collector.spans else None, 20, "a span")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    values = {item.key: plain(item.value) for item in span.attributes}
    assert values["gen_ai.request.id"] == "cmpl-shop-7" and values["gen_ai.operation.name"] == "text_completion"
    assert values["gen_ai.usage.completion_tokens"] == 5 and values["gen_ai.latency.time_in_scheduler"] > 0

    server.wait_stderr("request cmpl-shop-7 ended: length")
    server.wait_stderr("POST /v1/completions")
    lines = [line for line in log_of(server) if "shop-7" in line.get("request_id", "")]
    begun, ended = (line["message"] for line in lines if line["message"].startswith("request "))
    assert begun.startswith("request cmpl-shop-7: 13 prompt tokens, prompt 'one tw... (13 characters)', ids [")
    assert begun.count(",") >= 6 and "... (13), SamplingParams" in begun
    assert "13 prompt tokens, 0 of them cached, 5 generated" in ended
    assert any(line["logger"] == "uvicorn.access" and line["request_id"] == "shop-7" for line in lines)


def test_e92_all_lines_are_objects(server: ServerProcess) -> None:
    lines = log_of(server)
    assert {line["process"] for line in lines} >= {"server"}
    assert all({"time", "level", "logger", "pid", "message"} <= set(line) for line in lines)


def test_e95_a_stream_tells_its_times_at_its_end_only(server: ServerProcess) -> None:
    fields = {"prompt": "a", "max_tokens": 4, "include_metrics": True}
    *events, last, done = server.stream("/v1/completions", fields)
    assert done == "[DONE]" and last["choices"] == [] and "usage" not in last
    assert last["metrics"]["tokens_per_second"] > 0
    assert not [event for event in events if "metrics" in event]
    *events, last, _ = server.stream("/v1/completions", fields | {"stream_options": {"include_usage": True}})
    assert last["usage"]["completion_tokens"] == 4 and last["metrics"]["total_time_ms"] > 0
    *events, last, _ = server.stream("/v1/completions", fields | {"include_metrics": False})
    assert "metrics" not in last and last["choices"]


def test_e96_beams_count_their_prompt_once(server: ServerProcess) -> None:
    before = server.metrics()
    body = {"prompt": "abcd", "max_tokens": 4, "use_beam_search": True, "best_of": 3, "temperature": 0}
    assert post(server, "/v1/completions", body | {"include_metrics": True})[1]["metrics"]["total_time_ms"] > 0
    after = server.metrics()
    for name in ("vllm:prompt_tokens_total", "vllm:prefix_cache_queries_total", "vllm:request_prompt_tokens_sum"):
        assert after[name] - before[name] == 4, name


def test_e98_a_profile_is_written_by_the_engine(server: ServerProcess, directory: Path) -> None:
    key = {"authorization": "Bearer boss"}
    assert post(server, "/start_profile", {"torch": False}, **key) == (200, None)
    server.complete(max_tokens=5)
    status, recorded = post(server, "/stop_profile", None, **key)
    assert status == 200 and recorded["steps"] == 5
    [file] = recorded["files"]
    assert Path(file).parent == directory.parent / "profiles"
    assert json.loads(gzip.decompress(Path(file).read_bytes()))["traceEvents"]
    assert any(line["process"] == "engine" and "profile" in line["message"] for line in log_of(server))


def test_e91_a_server_whose_collector_is_gone_answers_and_ends_in_time(directory: Path) -> None:
    receiver = TraceReceiver("grpc")
    receiver.close()
    with ServerProcess(directory, "--otlp-traces-endpoint", receiver.endpoint, fake=True) as process:
        process.wait_ready()
        assert [process.complete(max_tokens=2).status for _ in range(20)] == [200] * 20
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_e90_traces_without_their_packages_are_refused_before_the_model_is_read(directory: Path) -> None:
    blocked = directory.parent / "blocked" / "grpc"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('no grpc', name='grpc')")
    path = os.pathsep.join([str(blocked.parent), os.environ.get("PYTHONPATH", "")])
    flags = ("--otlp-traces-endpoint", "http://127.0.0.1:1")
    with ServerProcess(directory, *flags, fake=True, env={"PYTHONPATH": path}) as process:
        assert process.wait(20) == 2
        assert "not installed (grpc): pip install 'octavo[otel]'" in process.stderr
