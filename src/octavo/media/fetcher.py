"""The bytes of a URL: fetched from public hosts, read from one directory, or held in the URL itself.

Whoever sends a request chooses the URL, so that this is the place where a server could be made to ask what only it can
reach. A name is resolved once, every address of it must be public, and the connection goes to an address of that
answer; a redirect is a new URL, with all of the same checks.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import ssl
import stat
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_to_bytes, urljoin

from octavo.base.config.media import MediaConfig
from octavo.base.errors import InvalidRequest
from octavo.media.addresses import BadURL, is_allowed_host, is_public, parse_target

if TYPE_CHECKING:
    from octavo.media.transport import Permit, Resolver

MAX_REDIRECTS: Final = 3
#: Fetches of all requests at once; others wait within their time.
MAX_CONNECTIONS: Final = 32


class Fetcher:
    """`resolver`, `permits`, `tls`: for tests, which have servers on this machine; nothing that a user sets."""

    def __init__(
        self,
        config: MediaConfig,
        *,
        resolver: Resolver | None = None,
        permits: Permit = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._resolver = resolver
        self._permits = permits
        self._tls = tls
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def bytes_of(self, url: str, param: str) -> bytes:
        """Raises `InvalidRequest` naming `param`."""
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(data_bytes, url, param)
        if scheme == "file":
            return await asyncio.to_thread(self._local, url, param)
        try:
            async with asyncio.timeout(self._config.media_fetch_timeout), self._places:
                return await self._fetched(url, param)
        except TimeoutError:
            raise InvalidRequest(
                f"The URL was not fetched within {self._config.media_fetch_timeout:g} s (--media-fetch-timeout).", param
            ) from None

    async def _fetched(self, url: str, param: str) -> bytes:
        from octavo.media import transport  # only servers that fetch need it

        resolver = self._resolver or transport.resolve
        for hop in range(MAX_REDIRECTS + 1):
            try:
                target = parse_target(url)
            except BadURL as exc:
                where = " that this one redirects to" if hop else ""
                raise InvalidRequest(f"The URL{where} cannot be fetched: {exc}.", param) from None
            if not is_allowed_host(target.host, self._config.allowed_media_domains):
                raise InvalidRequest("The URL's host is not one of --allowed-media-domains.", param)
            try:
                answer = await transport.get(target, self._config.max_media_bytes, resolver, self._permits, self._tls)
            except transport.Forbidden:
                raise InvalidRequest("The URL's host is not on the public internet.", param) from None
            except transport.TooLarge:
                raise self._too_large(param) from None
            except transport.Failed as exc:
                raise InvalidRequest(f"The URL cannot be fetched: {exc}.", param) from None
            if answer.location is None:
                if answer.status != 200:
                    raise InvalidRequest(f"The URL cannot be fetched: the host answers {answer.status}.", param)
                return answer.body
            url = _joined(target.url, answer.location, param)
            if target.scheme == "https" and not url.lower().startswith("https:"):
                raise InvalidRequest("The URL redirects from https to what is not.", param)
        raise InvalidRequest(f"The URL redirects more than {MAX_REDIRECTS} times.", param)

    def _too_large(self, param: str) -> InvalidRequest:
        return InvalidRequest(f"This has more than {self._config.max_media_bytes} bytes (--max-media-bytes).", param)

    def _local(self, url: str, param: str) -> bytes:
        root = self._config.allowed_local_media_path
        if root is None:
            raise InvalidRequest("This server reads no local files (--allowed-local-media-path is not set).", param)
        host, slash, path = url[5:].removeprefix("//").partition("/") if url[5:7] == "//" else ("", "/", url[6:])
        if host not in ("", "localhost") or not slash or any(char in path for char in "?#\\\0"):
            raise InvalidRequest("A file's URL should be file:/// and its absolute path.", param)
        try:
            return self._read(os.path.realpath(root), "/" + unquote(path, errors="strict"), param)
        except (OSError, ValueError):
            # The same for what is not there and what may not be seen.
            raise InvalidRequest("There is no such file within --allowed-local-media-path.", param) from None

    def _read(self, root: str, path: str, param: str) -> bytes:
        real = os.path.realpath(path)
        if os.path.commonpath([root, real]) != root:
            raise FileNotFoundError
        # Without waiting for a writer where it is a pipe, and not through a link that came just now.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # a second name may be outside
                raise FileNotFoundError
            if status.st_size > self._config.max_media_bytes:
                raise self._too_large(param)
            data = file.read(self._config.max_media_bytes + 1)
        if len(data) > self._config.max_media_bytes:
            raise self._too_large(param)
        return data


def _joined(base: str, location: str, param: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError:
        raise InvalidRequest("The URL redirects to what is no URL.", param) from None


def data_bytes(url: str, param: str) -> bytes:
    """What a data URL holds. Raises `InvalidRequest`."""
    head, comma, text = url.partition(",")
    if not comma:
        raise InvalidRequest("A data URL should have a comma before its data.", param)
    if head.lower().endswith(";base64"):
        return base64_bytes(text, param)
    return unquote_to_bytes(text)


def base64_bytes(text: str, param: str) -> bytes:
    """Raises `InvalidRequest`."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("This is not valid base64.", param) from None
