"""What surrounds every HTTP request: its id, its host, its errors, its metrics. Plain ASGI wrappers.

None of them wraps `send`: they leave what a reply's head needs in the scope, where `Exchange` finds it, so that the
tokens of a stream pass through no further call.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest, OctavoError
from octavo.base.log import current_request_id
from octavo.server.http.errors import (
    BadFraming,
    ErrorShape,
    ExpectationFailed,
    HeadersTooLarge,
    HostNotAllowed,
    VersionNotSupported,
    error_reply,
)
from octavo.server.http.exchange import ASGIApp, ClientDisconnected, Exchange, Receive, Scope, Send, header_of
from octavo.server.metrics import Metrics
from octavo.server.openai.protocol.common import is_request_id

logger = logging.getLogger(__name__)

#: W3C's: the span that a request belongs to. Where no traces are sent, the log says once that these have no effect
#: (E17).
TRACE_HEADERS = (b"traceparent", b"tracestate")

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\\x00-\x20,]*)(?::[0-9]*)?")
MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024


class HostCheck:
    """Only requests to one of the host names. A page of another site whose name was made to point at this machine
    reaches the server too, but names its own host (DNS rebinding). A client that sends no Host header is not a browser.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Exchange(scope, receive, send).header(b"host")
        if host and not self._is_allowed(_host_name(host)):
            raise HostNotAllowed("This server does not answer to that host name. See --allowed-hosts.")
        await self._app(scope, receive, send)

    def _is_allowed(self, name: str) -> bool:
        return name in self._hosts or name.endswith(".localhost") or _is_loopback(name)


def allowed_hosts(config: ServerConfig) -> frozenset[str] | None:
    """The names that `HostCheck` accepts; None: any name.

    By default only a server on a loopback address checks: the names of other servers cannot be known here.
    """
    given = {name.lower().rstrip(".") for name in config.allowed_hosts}
    if "*" in given or config.uds is not None:
        return None
    if not given and (config.host is None or not _is_loopback(config.host.lower())):
        return None
    return frozenset(given | {"localhost"} | ({config.host.lower()} if config.host else set()))


def _host_name(header: str) -> str:
    """The name in a `Host` header, without port, brackets and the final dot."""
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.rstrip(".")


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class RequestScope:
    """The outermost layer of a request: gives it an id, turns exceptions into replies, counts it."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        shape_of: Callable[[Scope], ErrorShape | None] = lambda scope: None,
        has_traces: bool = False,
    ) -> None:
        """`shape_of`: how the errors of a request are told; None: as OpenAI's API does."""
        self._app = app
        self._metrics = metrics
        self._shape_of = shape_of
        self._told_of_traces = has_traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = _given_request_id(scope)
        request_id = scope["octavo.request_id"] = given or uuid.uuid4().hex
        scope["octavo.request_id_given"] = given is not None
        current_request_id.set(request_id)
        started = time.perf_counter()
        try:
            _check_headers(scope)
            if not self._told_of_traces and any(name in TRACE_HEADERS for name, _ in scope["headers"]):
                self._told_of_traces = True
                logger.warning(
                    "requests carry trace headers (traceparent), which have no effect without --otlp-traces-endpoint; "
                    "logged once"
                )
            await self._app(scope, receive, send)
        except ClientDisconnected:
            scope.setdefault("octavo.status", 499)  # nobody reads it; the number is nginx's
        except Exception as exc:
            if not isinstance(exc, OctavoError):
                logger.exception("request %s failed", request_id)
            if "octavo.status" in scope:
                raise  # the reply has begun, so the only way to show an error is to cut the connection
            told, shape = error_reply(exc), self._shape_of(scope)
            reply = told if shape is None else shape(told, request_id)
            await Exchange(scope, receive, send).send_json(reply.body, reply.status, reply.headers)
        finally:
            status, route = scope.get("octavo.status", 500), scope.get("octavo.route", "")
            self._metrics.on_http_request(scope["method"], route, status, time.perf_counter() - started)


def _given_request_id(scope: Scope) -> str | None:
    """The client's `X-Request-Id` when it is short and printable ASCII. It is never a key."""
    value = (header_of(scope, b"x-request-id") or b"").decode("latin-1")
    return value if is_request_id(value) else None


def _check_headers(scope: Scope) -> None:
    """Refuse heads that parse as HTTP but are void or ambiguous."""
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"More than {MAX_HEADERS} headers, or more than {MAX_HEADER_BYTES} bytes of them.")
    version = scope.get("http_version", "")
    if version not in ("1.1", "1.0", ""):
        raise VersionNotSupported(f"HTTP/{version} is not supported; HTTP/1.1 is.")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        raise InvalidRequest("There is more than one Host header.")
    if version == "1.1" and not hosts:
        raise InvalidRequest("There is no Host header, which HTTP/1.1 requires.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise InvalidRequest("The Host header is not a host name or address with an optional port.")
    for name, value in headers:
        if name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
            raise BadFraming("A Transfer-Encoding other than chunked, in HTTP/1.1, is not supported.")
        if name == b"expect" and value.strip().lower() != b"100-continue":
            raise ExpectationFailed("Only `Expect: 100-continue` is supported.")
