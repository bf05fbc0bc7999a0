"""Calls of an ASGI application in this process: no port, no socket, and the checks of the server all the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from octavo.server.http.exchange import ASGIApp, ASGIMessage


@dataclass(slots=True)
class CallReply:
    """The whole reply to one request."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


async def call(app: ASGIApp, path: str, body: bytes) -> CallReply:
    """POST JSON to a path, which may have a query. Cancelling the call is what a client does that goes away."""
    reply, chunks = CallReply(), list[bytes]()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ],
    }
    is_read = False

    async def receive() -> ASGIMessage:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()  # whoever waits for the client to go away waits in vain
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = dict(message["headers"])
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    reply.body = b"".join(chunks)
    return reply
