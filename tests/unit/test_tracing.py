"""A span for each request reaches a collector, and a collector that does not answer holds up nobody."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.base.params import GenerateRequest, SamplingParams
from octavo.client.observer import FinishedRequest, RequestTimes
from octavo.server.tracing import _LOGGERS, _QUIET, Tracer, check_tracing, traces_url
from octavo.wire.messages import StepSeconds
from support.server_process import bound
from support.trace_receiver import TraceReceiver, plain

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def finished(
    flags: str = "01", reasons: tuple[str, ...] = ("stop",), seconds: StepSeconds | None = None
) -> FinishedRequest:
    request = GenerateRequest(
        external_id="chatcmpl-x",
        prompt_token_ids=[1, 2, 3],
        params=SamplingParams(temperature=0.5, top_p=0.9, max_tokens=7, stop=("END",)),
        trace_headers=(("traceparent", f"00-{TRACE}-{PARENT}-{flags}"), ("tracestate", "shop=1")),
        is_chat=True,
    )
    now = time.monotonic()
    times = RequestTimes(now - 4.0, now - 3.5, now - 3.0, now - 1.0, now)
    return FinishedRequest(request, times, reasons, (5,) * len(reasons), 2, seconds)


@pytest.fixture(params=["http/protobuf", "grpc"])
def receiver(request: pytest.FixtureRequest) -> Iterator[tuple[TraceReceiver, ServerConfig]]:
    collector = TraceReceiver(request.param)
    yield collector, ServerConfig(otlp_traces_endpoint=collector.endpoint, otlp_traces_protocol=request.param)
    collector.close()


def test_e90_a_span_has_its_parent_its_times_and_both_sets_of_names(
    receiver: tuple[TraceReceiver, ServerConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector, config = receiver
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
    check_tracing(config)
    tracer = Tracer(config, "tiny")
    before = time.time_ns()
    tracer.on_request_finish(finished(seconds=StepSeconds(0.1, 1.5, 2.0)))
    tracer.on_request_finish(finished(flags="00"))  # its caller's trace is not recorded
    tracer.on_request_finish(finished(reasons=("error",)))
    tracer.close(bound(10))
    span, failed = collector.spans
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "shop=1")
    assert (span.name, span.kind) == ("llm_request", span.SPAN_KIND_SERVER)
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(4.0, abs=0.01)
    assert abs(span.end_time_unix_nano - before) / 1e9 < bound(2)
    events = {event.name: (event.time_unix_nano - span.start_time_unix_nano) / 1e9 for event in span.events}
    assert events == {"scheduled": pytest.approx(0.5, abs=0.01), "first_token": pytest.approx(1.0, abs=0.01)}
    values = {item.key.removeprefix("gen_ai."): plain(item.value) for item in span.attributes}
    assert values == {
        "operation.name": "chat", "provider.name": "octavo", "request.model": "tiny", "response.model": "tiny",
        "request.id": "chatcmpl-x", "response.id": "chatcmpl-x", "response.finish_reasons": ["stop"],
        "request.temperature": 0.5, "request.top_p": 0.9, "request.max_tokens": 7, "request.n": 1,
        "request.best_of": 1, "request.stop_sequences": ["END"], "usage.num_sequences": 1,
        "usage.prompt_tokens": 3, "usage.input_tokens": 3, "usage.completion_tokens": 5, "usage.output_tokens": 5,
        "usage.cache_read.input_tokens": 2, "latency.time_in_queue": pytest.approx(0.5),
        "latency.time_to_first_token": pytest.approx(1.0), "latency.e2e": pytest.approx(4.0),
        "latency.time_in_model_prefill": pytest.approx(0.5), "latency.time_in_model_decode": pytest.approx(2.0),
        "latency.time_in_model_inference": pytest.approx(2.5), "latency.time_in_scheduler": pytest.approx(0.1),
        "latency.time_in_model_forward": pytest.approx(1.5), "latency.time_in_model_execute": pytest.approx(2.0),
    }  # fmt: skip
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert collector.resource["service.name"] == "front"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_e91_a_collector_that_is_not_there_holds_up_nobody(protocol: str) -> None:
    with socket.socket() as sock:  # bound, and nobody listens
        sock.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        tracer = Tracer(ServerConfig(otlp_traces_endpoint=endpoint, otlp_traces_protocol=protocol), "tiny")
        one = finished()
        start = time.perf_counter()
        for _ in range(3000):  # more than wait in the queue
            tracer.on_request_finish(one)
        assert (time.perf_counter() - start) / 3000 < bound(0.002)
        tracer.close(0.1)
        assert time.perf_counter() - start < bound(10)


def test_e90_a_broken_parent_is_none() -> None:
    collector = TraceReceiver("http/protobuf")
    config = ServerConfig(otlp_traces_endpoint=collector.endpoint, otlp_traces_protocol="http/protobuf")
    tracer = Tracer(config, "tiny")
    for value in ("", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "\x00", f"00-{TRACE}-{PARENT}"):
        one = finished()
        headers = (("traceparent", value), ("tracestate", "=,=" * 99))
        request = GenerateRequest(external_id="x", prompt_token_ids=[1], params=SamplingParams(), trace_headers=headers)
        tracer.on_request_finish(FinishedRequest(request, one.times, ("abort",), (0,), 0))
    tracer.close(bound(10))
    collector.close()
    assert [span.parent_span_id for span in collector.spans] == [b""] * 5
    assert set(collector.paths) == {"/v1/traces"}


def test_e90_missing_packages_are_named_with_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    check_tracing(ServerConfig())
    with pytest.raises(InvalidConfig, match=r"--otlp-traces-endpoint needs.*pip install 'octavo\[otel\]'"):
        check_tracing(ServerConfig(otlp_traces_endpoint="http://c:4317"))


def test_the_path_of_a_bare_address_is_the_collectors_own() -> None:
    assert traces_url("http://c:4318") == traces_url("http://c:4318/") == "http://c:4318/v1/traces"
    assert traces_url("https://c/otlp/v1/traces") == "https://c/otlp/v1/traces"


def test_e91_the_log_hears_of_a_missing_collector_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    tracer = Tracer(ServerConfig(otlp_traces_endpoint="http://127.0.0.1:1"), "tiny")
    _QUIET.next_time = 0.0
    for name in _LOGGERS * 3:
        logging.getLogger(name).error("gone")
    assert caplog.text.count("gone") == 1
    tracer.close(0.1)
