"""Closed-loop load on a server with an OpenAI-compatible API: N streams, each asking again when it has its reply.

The client is a bare asyncio HTTP/1.1 reader, because on a small machine a comfortable one would be part of what is
measured. Plain http only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

WORDS = [
    "river",
    "lamp",
    "stone",
    "garden",
    "paper",
    "engine",
    "silver",
    "window",
    "market",
    "letter",
    "winter",
    "bridge",
    "copper",
    "story",
    "orange",
    "thunder",
    "forest",
    "wheel",
    "candle",
    "harbor",
]

# One request may wait for a whole queue in front of it.
REQUEST_TIMEOUT = 900.0


class LoadError(Exception):
    """The server refused a request or broke a stream."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one level of load asks for."""

    concurrency: int
    requests: int
    prompt_words: int
    output_len: int


@dataclasses.dataclass
class Reply:
    """The times of one request, in seconds of `time.perf_counter`, and its token counts."""

    start: float
    stamps: list[float]  # when each piece of text came
    end: float
    prompt_tokens: int
    output_tokens: int


def prompt(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


async def _http(url: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body of the reply, in pieces. Raises `LoadError` unless the status is 200."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=1 << 20)
    try:
        lines = [f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        status = (await reader.readline()).split()
        chunked, length = False, None
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "transfer-encoding" and "chunked" in value.lower():
                chunked = True
            elif name.lower() == "content-length":
                length = int(value)
        pieces = _chunks(reader) if chunked else _plain(reader, length)
        if len(status) < 2 or status[1] != b"200":
            text = b"".join([piece async for piece in pieces]).decode(errors="replace")
            raise LoadError(f"{b' '.join(status).decode()}: {text[:300]}")
        async for piece in pieces:
            yield piece
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _plain(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    yield await (reader.read() if length is None else reader.readexactly(length))


async def get_json(url: str, path: str, headers: dict[str, str]) -> Any:
    return json.loads(b"".join([piece async for piece in _http(url, "GET", path, b"", headers)]))


async def complete(url: str, model: str, text: str, output_len: int, headers: dict[str, str]) -> Reply:
    """One streamed completion of exactly `output_len` tokens, greedy."""
    request = {"model": model, "prompt": text, "max_tokens": output_len, "temperature": 0.0, "ignore_eos": True}
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    reply = Reply(time.perf_counter(), [], 0.0, 0, 0)
    buffer = b""
    async for piece in _http(url, "POST", "/v1/completions", json.dumps(request).encode(), headers):
        now = time.perf_counter()
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                _event(reply, json.loads(line[6:]), now)
    reply.end = time.perf_counter()
    if not reply.stamps:
        raise LoadError("a stream ended without any text")
    return reply


def _event(reply: Reply, event: dict[str, Any], now: float) -> None:
    if event.get("error"):
        raise LoadError(str(event["error"])[:300])
    if event.get("choices") and event["choices"][0].get("text"):
        reply.stamps.append(now)
    if event.get("usage"):
        reply.prompt_tokens = event["usage"]["prompt_tokens"]
        reply.output_tokens = event["usage"]["completion_tokens"]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank, in milliseconds."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None


async def run_level(url: str, model: str, shape: Shape, rng: random.Random, headers: dict[str, str]) -> dict[str, Any]:
    """Send `shape.requests` requests, `shape.concurrency` at a time. Every prompt is new to the server."""
    waiting = [prompt(rng, shape.prompt_words) for _ in range(shape.requests)]
    replies: list[Reply] = []

    async def stream() -> None:
        while waiting:
            one = complete(url, model, waiting.pop(), shape.output_len, headers)
            replies.append(await asyncio.wait_for(one, REQUEST_TIMEOUT))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(shape.concurrency):
            group.create_task(stream())
    return summary(shape, replies, time.perf_counter() - start)


def summary(shape: Shape, replies: Sequence[Reply], wall: float) -> dict[str, Any]:
    """The figures of one level. Times in milliseconds, rates in tokens a second."""
    prompt_tokens = sum(r.prompt_tokens for r in replies)
    output_tokens = sum(r.output_tokens for r in replies)
    first = [r.stamps[0] - r.start for r in replies]
    gaps = [b - a for r in replies for a, b in zip(r.stamps, r.stamps[1:], strict=False)]
    each = [(r.stamps[-1] - r.stamps[0]) / (r.output_tokens - 1) for r in replies if r.output_tokens > 1]
    return {
        **dataclasses.asdict(shape),
        "wall_s": round(wall, 3),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "output_tok_s": round(output_tokens / wall, 1),
        "total_tok_s": round((prompt_tokens + output_tokens) / wall, 1),
        "ttft_ms": {"p50": percentile(first, 0.5), "p90": percentile(first, 0.9), "p99": percentile(first, 0.99)},
        "itl_ms": {"p50": percentile(gaps, 0.5), "p90": percentile(gaps, 0.9), "p99": percentile(gaps, 0.99)},
        "tpot_ms": {"mean": round(1000 * statistics.fmean(each), 2) if each else None},
    }


async def measure(
    url: str, shapes: Sequence[Shape], *, model: str | None = None, api_key: str | None = None, seed: int = 1
) -> dict[str, Any]:
    """Warm the server up, then run the levels in turn. `model` None: the first that the server lists."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    if model is None:
        model = (await get_json(url, "/v1/models", headers))["data"][0]["id"]
    rng = random.Random(seed)
    for _ in range(2):
        await complete(url, str(model), prompt(rng, 16), 8, headers)
    return {"url": url, "model": model, "levels": [await run_level(url, str(model), s, rng, headers) for s in shapes]}


def table(levels: Sequence[dict[str, Any]]) -> str:
    """The levels as lines of text."""
    head = ("streams", "in", "out", "out tok/s", "total tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "tpot")
    rows = [
        (
            level["concurrency"],
            level["prompt_tokens"] // level["requests"],
            level["output_len"],
            level["output_tok_s"],
            level["total_tok_s"],
            level["ttft_ms"]["p50"],
            level["ttft_ms"]["p99"],
            level["itl_ms"]["p50"],
            level["itl_ms"]["p99"],
            level["tpot_ms"]["mean"],
        )
        for level in levels
    ]
    lines = [head, *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    return "\n".join("  ".join(f"{cell:>11}" for cell in line) for line in lines)
