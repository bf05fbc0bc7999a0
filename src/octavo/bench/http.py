"""A bare HTTP/1.1 client over asyncio that streams completions and takes the times.

On a small machine a comfortable client would be part of what is measured. One connection a request, as most clients of
such servers have; no redirects, no proxies.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from octavo.base.errors import InvalidConfig, OctavoError
from octavo.bench.config import ServeBenchConfig
from octavo.bench.datasets import Prompt

#: Bytes of an error's body that are told.
_TOLD = 300


class LoadError(OctavoError):
    """The server cannot be reached, refused a request, or broke a stream."""


@dataclass
class Reply:
    """One request. Times in seconds of `time.perf_counter`; `stamps`: when each piece of text came."""

    start: float
    stamps: list[float] = field(default_factory=list)
    end: float = 0.0
    prompt_tokens: int | None = None  # None: the server does not say
    output_tokens: int = 0
    error: str | None = None


class Server:
    """An OpenAI-compatible server at a base URL. Raises `InvalidConfig` for what is no URL."""

    def __init__(self, config: ServeBenchConfig, key: str) -> None:
        parts = urlsplit(config.url.rstrip("/").removesuffix("/v1"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidConfig(f"--url must be an http or https address; got {config.url!r}")
        self.url = parts.geturl()
        self._host, self._netloc, self._path = parts.hostname, parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self._is_secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_secure else 80)
        self._config = config
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def first_model(self) -> str:
        """The model that the server lists first. Raises `LoadError`."""
        try:
            async with asyncio.timeout(self._config.request_timeout):
                found = await self._whole("GET", "/v1/models")
            return str(json.loads(found)["data"][0]["id"])
        except (OSError, asyncio.IncompleteReadError) as e:  # before ValueError: a refused certificate is both
            raise LoadError(f"no answer from {self.url}: {_told(e)}") from e
        except (ValueError, LookupError, TypeError):
            raise LoadError(f"{self.url}/v1/models lists no model: name one with --model") from None

    async def complete(self, model: str, prompt: Prompt) -> Reply:
        """One streamed reply. A failure is in `error` of the reply, with the times up to it."""
        reply = Reply(time.perf_counter())
        body = json.dumps(self._body(model, prompt)).encode()
        limit = asyncio.timeout(self._config.request_timeout)
        try:
            async with limit:
                await self._stream(body, reply)
        except LoadError as e:
            reply.error = e.message
        except (OSError, asyncio.IncompleteReadError) as e:
            reply.error = f"no end after {self._config.request_timeout:g} s" if limit.expired() else _told(e)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            reply.error = f"the server sent what is no completion ({_told(e)})"
        reply.end = time.perf_counter()
        return reply

    def _body(self, model: str, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model, "max_tokens": prompt.output_len, "temperature": self._config.temperature,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self._config.ignore_eos:
            body["ignore_eos"] = True
        if self._config.endpoint == "/v1/completions":
            return body | {"prompt": prompt.content}
        return body | {"messages": [{"role": "user", "content": prompt.content}]}

    async def _stream(self, body: bytes, reply: Reply) -> None:
        buffer, is_done = b"", False
        async with aclosing(self._send("POST", self._config.endpoint, body)) as pieces:
            async for piece in pieces:
                now = time.perf_counter()
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: {"):
                        note_event(reply, json.loads(line[6:]), now)
                    is_done = is_done or line.startswith(b"data: [DONE]")
        if not is_done or not reply.stamps:
            raise LoadError("the stream ended early" if reply.stamps else "the stream ended without any text")
        reply.output_tokens = reply.output_tokens or len(reply.stamps)

    async def _whole(self, method: str, path: str) -> bytes:
        return b"".join([piece async for piece in self._send(method, path, b"")])

    async def _send(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The body of the reply, in pieces as they come. Raises `LoadError` unless the status is 200."""
        reader, writer = await asyncio.open_connection(
            self._host, self._port, limit=1 << 20, ssl=True if self._is_secure else None
        )
        try:
            writer.write(self._head(method, path, len(body)) + body)
            await writer.drain()
            status, headers = await _read_head(reader)
            pieces = _chunks(reader) if "chunked" in headers.get("transfer-encoding", "") else _plain(reader, headers)
            if status != 200:
                text = b"".join([piece async for piece in pieces]).decode(errors="replace")
                raise LoadError(f"the server refused ({status}): {_message(text)}")
            async for piece in pieces:
                yield piece
        finally:
            writer.close()

    def _head(self, method: str, path: str, length: int) -> bytes:
        lines = [f"{method} {self._path}{path} HTTP/1.1", f"Host: {self._netloc}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        return ("\r\n".join([*lines, f"Content-Length: {length}"]) + "\r\n\r\n").encode("latin-1")


def note_event(reply: Reply, event: Mapping[str, Any], now: float) -> None:
    """Take in one event of a stream. Raises `LoadError` for one that tells of an error."""
    if event.get("error"):
        raise LoadError(_message(json.dumps(event)))
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        # Of a reply whose tokens make no text, at least the end is seen.
        if text or (choice.get("finish_reason") and not reply.stamps):
            reply.stamps.append(now)
    if usage := event.get("usage"):
        reply.prompt_tokens, reply.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers; names and values in lower case."""
    first = await reader.readline()
    words = first.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise LoadError(f"this is no HTTP: {first[:80]!r}" if first else "the connection was closed without a reply")
    headers = {}
    while (line := await reader.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip().lower()
    return int(words[1]), headers


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readline()
        if not line:
            raise LoadError("the connection was closed in the middle of a reply")
        size = int(line.split(b";")[0], 16)
        if size == 0:
            return
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _plain(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while piece := await reader.read(1 << 16):
        yield piece


def _message(text: str) -> str:
    """What an error's body says."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:_TOLD]
    except (ValueError, LookupError, TypeError):
        return text[:_TOLD]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
