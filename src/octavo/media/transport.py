"""HTTP over connections to addresses that were checked. Imported with the first medium that is fetched."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import httpcore

from octavo.media.addresses import Address, Target

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Permit = Callable[[Address], bool]


class Forbidden(Exception):
    """The host has an address to which nothing may be sent."""


class Failed(Exception):
    """The host does not answer, or not in HTTP; the text says so without its words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`location`: where a redirect leads."""

    status: int
    location: str | None
    body: bytes


class TooLarge(Exception):
    """The body is larger than is read."""


#: Its own threads: names whose servers do not answer must not take those that compile grammars.
_RESOLVING = ThreadPoolExecutor(8, "resolve")


async def resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(_RESOLVING, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    return [str(entry[4][0]) for entry in found]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, and connects to an address of the answer, or to none if any of them is forbidden. The
    name stays what the Host header and the certificate are about."""

    def __init__(self, resolver: Resolver, permits: Permit) -> None:
        self._resolver = resolver
        self._permits = permits
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        texts = await self._resolver(host, port)
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in texts]
        if not addresses or not all(map(self._permits, addresses)):
            raise Forbidden
        last: Exception | None = None
        for address in addresses[:4]:
            try:
                return await self._inner.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                last = exc
        assert last is not None
        raise last

    async def connect_unix_socket(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        raise Forbidden

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


async def get(
    target: Target, max_bytes: int, resolver: Resolver, permits: Permit, tls: ssl.SSLContext | None
) -> Answer:
    """One GET, no redirect followed. Raises `Forbidden`, `TooLarge` or `Failed`."""
    url = httpcore.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
    )
    headers = [
        (b"Host", target.authority.encode()),
        (b"User-Agent", b"octavo"),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"identity"),  # what is packed could be any size unpacked
    ]
    backend = CheckedBackend(resolver, permits)
    try:
        async with (
            httpcore.AsyncConnectionPool(ssl_context=tls or _tls(), network_backend=backend) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            named = {name.lower(): value for name, value in response.headers}
            if 300 <= response.status < 400:
                location = named.get(b"location")
                return Answer(response.status, None if location is None else location.decode("latin-1"), b"")
            if response.status != 200:
                return Answer(response.status, None, b"")
            if named.get(b"content-encoding", b"identity").lower() != b"identity":
                raise Failed("the host answers with packed data, which was not asked for")
            length = named.get(b"content-length", b"")
            if length.isdigit() and int(length) > max_bytes:
                raise TooLarge
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > max_bytes:
                    raise TooLarge
            return Answer(200, None, bytes(body))
    except (httpcore.NetworkError, httpcore.TimeoutException, OSError, UnicodeError):
        raise Failed("the host cannot be reached") from None
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol):
        raise Failed("the host does not answer as a web server does") from None
