"""HTTP to MCP servers: over checked addresses where a stranger chose the URL, and bounded. Imported with a session."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache

import httpx2

from octavo.media.addresses import is_public
from octavo.media.transport import Permit, Resolver, resolve

_MAX_ADDRESSES = 4


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Resolves a name once, and connects to an address of the answer, or to none if any of them is forbidden. The name
    stays what the Host header and the certificate are about.

    `failure`: why nothing more comes, in words for the caller; `status`: of the last message, if it was no success.
    """

    def __init__(
        self,
        max_bytes: int,
        permits: Permit | None = is_public,
        *,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`max_bytes` of one reply. `permits`: None lets all addresses be asked. `resolver`, `tls`: for tests."""
        self.failure: str | None = None
        self.status: int | None = None
        self._max_bytes = max_bytes
        self._permits = permits
        self._resolver = resolver
        self._inner = httpx2.AsyncHTTPTransport(verify=tls or _tls(), trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.failure is not None:
            raise httpx2.NetworkError(self.failure)
        request.headers["accept-encoding"] = "identity"  # what is packed could be any size unpacked
        try:
            response = await self._sent(request)
        except (OSError, UnicodeError, httpx2.NetworkError, httpx2.TimeoutException):
            raise self._failed("the server cannot be reached", request) from None
        except httpx2.ProtocolError:
            raise self._failed("the server does not answer as a web server does", request) from None
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise self._failed("the server answers with packed data, which was not asked for", request)
        if request.method == "POST":  # else it may be that the server has no stream of its own to give
            self.status = response.status_code if response.status_code >= 400 else None
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, self)
        return response

    async def _sent(self, request: httpx2.Request) -> httpx2.Response:
        if self._permits is None:
            return await self._inner.handle_async_request(request)
        url = request.url
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        addresses = [
            ipaddress.ip_address(text.partition("%")[0]) for text in await self._resolver(url.host.strip("[]"), port)
        ]
        if not addresses or not all(map(self._permits, addresses)):
            raise self._failed("its host is not on the public internet", request)
        last: Exception | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            asked = httpx2.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host.strip("[]")},
            )
            try:
                return await self._inner.handle_async_request(asked)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
                last = exc
        assert last is not None
        raise last

    def _failed(self, message: str, request: httpx2.Request) -> httpx2.NetworkError:
        """Only messages count: what the server says of its own accord is not waited for."""
        if request.method == "POST":
            self.failure = self.failure or message
        return httpx2.NetworkError(message)

    def check_size(self, size: int) -> None:
        if size > self._max_bytes:
            self.failure = "its answer is larger than is read (--mcp-max-bytes)"
            raise httpx2.ReadError(self.failure)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, transport: CheckedTransport) -> None:
        self._inner = inner
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            self._transport.check_size(size)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
