"""A span of OpenTelemetry for each request, sent to a collector (OTLP).

The span is made at the request's end, with the times that the client's observer is told anyway: while a request runs
nothing is done for it. A thread of the SDK sends spans in batches; when the collector is slow or gone they gather in a
bounded queue and are dropped beyond it, and no request notices.

The packages are an extra, `octavo[otel]`, imported here and only where traces are asked for. The SDK itself reads the
variables OTEL_*: headers, certificates, timeouts, the sampler, the name of the service.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import octavo
from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.client.observer import FinishedRequest, NoObserver

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

#: Seconds that spans get to reach the collector when the server ends.
CLOSE_SECONDS = 2.0

#: Seconds between two complaints of the SDK about the collector.
SPACING = 60.0
#: Where it complains from.
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)

_EXPORTERS: Final = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


def check_tracing(config: ServerConfig) -> None:
    """Raise `InvalidConfig` where traces are asked for and their packages are not installed."""
    if config.otlp_traces_endpoint is None:
        return
    for name in ("opentelemetry.sdk.trace", _EXPORTERS[config.otlp_traces_protocol]):
        try:
            importlib.import_module(name)
        except ImportError as exc:
            raise InvalidConfig(
                f"--otlp-traces-endpoint needs packages that are not installed ({exc.name or name}): "
                "pip install 'octavo[otel]'"
            ) from None


class _OnceInAWhile(logging.Filter):
    """One record in `SPACING` seconds: a collector that is down would otherwise fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self.next_time = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created < self.next_time:
            return False
        self.next_time = record.created + SPACING
        return True


_QUIET = _OnceInAWhile()


class Tracer(NoObserver):
    """Makes the spans. `close` at the end."""

    def __init__(self, config: ServerConfig, model_name: str, *, exporter: SpanExporter | None = None) -> None:
        """`exporter`: a test's, in place of the one that `config` asks for. Call `check_tracing` first."""
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        from opentelemetry.trace.status import Status, StatusCode

        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes over it.
        ours = Resource({"service.name": "octavo", "service.version": octavo.__version__})
        resource = ours.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter(config)))
        self._tracer = self._provider.get_tracer("octavo", octavo.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._model_name = model_name
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_QUIET)

    def on_request_finish(self, finished: FinishedRequest) -> None:
        try:
            self._record(finished)
        except Exception:  # an observer never raises: a trace is not worth a request
            request_id = finished.request.external_id
            logger.exception("the trace of a request is lost", extra={"request_id": request_id})

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Send what is left, for at most `timeout` seconds. Not on the event loop."""
        thread = threading.Thread(target=self._provider.shutdown, name="octavo-traces", daemon=True)
        thread.start()
        thread.join(timeout)

    def _record(self, finished: FinishedRequest) -> None:
        times = finished.times
        # The clock of the times counts from an arbitrary moment.
        offset = time.time() - time.monotonic()

        def nanos(moment: float) -> int:
            return int((moment + offset) * 1e9)

        end = times.finish or time.monotonic()
        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(dict(finished.request.trace_headers)),
            kind=self._kind,
            start_time=nanos(times.arrival or end),
        )
        if span.is_recording():
            span.set_attributes(attributes_of(finished, self._model_name))
            for name, moment in (("scheduled", times.scheduled), ("first_token", times.first_token)):
                if moment:
                    span.add_event(name, timestamp=nanos(moment))
            if "error" in finished.finish_reasons:
                span.set_attribute("error.type", "engine_error")
                span.set_status(self._failed)
        span.end(nanos(end))


def attributes_of(finished: FinishedRequest, model_name: str) -> dict[str, Any]:
    """What a span tells: under the names of vLLM 0.6.0, and under today's of the conventions for generative AI."""
    request, params, times = finished.request, finished.request.params, finished.times
    num_output = sum(finished.num_output_tokens)
    n = request.num_wanted or params.n
    values: dict[str, Any] = {
        "gen_ai.operation.name": "chat" if request.is_chat else "text_completion",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": model_name,
        "gen_ai.response.model": model_name,
        "gen_ai.request.id": request.external_id,
        "gen_ai.response.id": request.external_id,
        "gen_ai.response.finish_reasons": finished.finish_reasons,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.best_of": request.num_sequences,
        "gen_ai.request.n": n,
        "gen_ai.request.choice.count": n if n > 1 else None,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.top_k": params.top_k if params.top_k > 0 else None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
        "gen_ai.request.stop_sequences": params.stop or None,
        "gen_ai.usage.num_sequences": len(finished.finish_reasons),
        "gen_ai.usage.prompt_tokens": request.num_prompt_tokens,
        "gen_ai.usage.input_tokens": request.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": num_output,
        "gen_ai.usage.output_tokens": num_output,
        "gen_ai.usage.cache_read.input_tokens": finished.num_cached_tokens,
        "gen_ai.latency.time_in_queue": times.queue_seconds,
        "gen_ai.latency.time_to_first_token": times.first_token_seconds,
        "gen_ai.latency.e2e": times.total_seconds,
        "gen_ai.latency.time_in_model_prefill": times.prefill_seconds,
        "gen_ai.latency.time_in_model_decode": times.decode_seconds,
        "gen_ai.latency.time_in_model_inference": _sum(times.prefill_seconds, times.decode_seconds),
    }
    if (spent := finished.step_seconds) is not None:
        values["gen_ai.latency.time_in_scheduler"] = spent.scheduler
        values["gen_ai.latency.time_in_model_forward"] = spent.forward
        values["gen_ai.latency.time_in_model_execute"] = spent.worker
    return {name: value for name, value in values.items() if value is not None}


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _exporter(config: ServerConfig) -> SpanExporter:
    endpoint = config.otlp_traces_endpoint
    assert endpoint is not None, "tracing without an endpoint"
    if config.otlp_traces_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GRPCExporter

        return GRPCExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HTTPExporter

    return HTTPExporter(endpoint=traces_url(endpoint))


def traces_url(endpoint: str) -> str:
    """The address that traces are posted to: of a collector's bare address, the path that all collectors have."""
    scheme, _, rest = endpoint.partition("://")
    host, _, path = rest.partition("/")
    return endpoint if path else f"{scheme}://{host}/v1/traces"
