"""A collector of traces on loopback, of both protocols of OTLP: it decodes what comes, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def plain(value: Any) -> Any:
    """An attribute's value as Python's."""
    kind = value.WhichOneof("value")
    return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class TraceReceiver:
    """`endpoint` is for --otlp-traces-endpoint. `close` at the end."""

    def __init__(self, protocol: str) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.paths: list[str] = []
        self.arrived = threading.Event()
        self._server: Any
        if protocol == "grpc":
            self._server = grpc.server(ThreadPoolExecutor(1))
            add_TraceServiceServicer_to_server(_Servicer(self), self._server)
            port = self._server.add_insecure_port("127.0.0.1:0")
            self._server.start()
            self.close = lambda: self._server.stop(None).wait(5)
        else:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": self}))
            port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            self.close = self._server.shutdown
        self.endpoint = f"http://127.0.0.1:{port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            self.resource = {item.key: plain(item.value) for item in group.resource.attributes}
            for scope in group.scope_spans:
                self.spans += scope.spans
        self.arrived.set()


class _Servicer(TraceServiceServicer):  # type: ignore[misc]
    def __init__(self, receiver: TraceReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        self._receiver.take(request)
        return ExportTraceServiceResponse()


class _Handler(BaseHTTPRequestHandler):
    receiver: TraceReceiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.receiver.paths.append(self.path)
        self.receiver.take(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
