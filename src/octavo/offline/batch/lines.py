"""The lines of a batch: one request each, with the id by which its result is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo.base.errors import InvalidRequest, OctavoError, RequestError, RequestTooLarge
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import decode_json
from octavo.server.openai.protocol.common import WireModel

#: Bytes of a line beside the body of its request.
MOST_ENVELOPE_BYTES = 64 * 1024
MOST_ID_CHARS = 512
_SKIP_BYTES = 1 << 20

#: How the ids of results begin: of those that their custom_id names, and of those that only their line names.
REQUEST_PREFIX, LINE_PREFIX = "batch_req_", "batch_line_"


class BatchError(OctavoError):
    """The batch cannot go on: a file or an address is at fault. The exit code is 1."""


class _Envelope(WireModel):
    """A line as OpenAI's batches have it."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class _RawBody(msgspec.Struct):
    body: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input. `error`: why it is no request; `custom_id` is None where it could not be read."""

    number: int  # from 1
    id: str
    custom_id: str | None
    url: str = ""
    body: bytes = b""
    error: RequestError | None = None


def read_lines(path: Path, most_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not empty, with their numbers; None for one that is longer than `most_bytes`.

    Never more than one line is in memory. Raises `BatchError`.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(most_bytes + 1):
                number += 1
                if len(data) > most_bytes and not data.endswith(b"\n"):
                    while data and not data.endswith(b"\n"):
                        data = file.readline(_SKIP_BYTES)
                    yield number, None
                elif data.strip():
                    yield number, data.strip()
    except OSError as exc:
        raise BatchError(f"{path} cannot be read: {exc.strerror or exc}") from exc


class LineParser:
    """Makes lines of bytes, in their order. A custom_id counts once: of two lines the second is an error."""

    def __init__(self, max_body_bytes: int, max_json_depth: int) -> None:
        self.most_bytes = max_body_bytes + MOST_ENVELOPE_BYTES
        self._max_depth = max_json_depth
        self._seen: set[bytes] = set()  # digests, for custom ids may be long and lines many

    def lines(self, path: Path) -> Iterator[Line]:
        """All lines of a file. Raises `BatchError`."""
        self._seen.clear()
        for number, data in read_lines(path, self.most_bytes):
            yield self._parsed(number, data)

    def _parsed(self, number: int, data: bytes | None) -> Line:
        if data is None:
            error = RequestTooLarge(f"The line is longer than {self.most_bytes} bytes (see --max-body-bytes).")
            return Line(number, _line_id(number, b""), None, error=error)
        value: Any = None
        try:
            # The line is one level deeper than the body.
            value = decode_json(data, self._max_depth + 1)
            envelope = validate_body(_Envelope, value)
        except RequestError as exc:
            exc.message = exc.message.replace("The body", "The line", 1)
            named = value.get("custom_id") if exc.param is not None and isinstance(value, dict) else None
            custom_id = named if isinstance(named, str) and len(named) <= MOST_ID_CHARS else None
            return Line(number, _line_id(number, data), custom_id, error=exc)
        try:
            self._check(envelope)
        except InvalidRequest as exc:
            return Line(number, _line_id(number, data), envelope.custom_id[:MOST_ID_CHARS], error=exc)
        # As it was written: numbers keep their digits, and the server's errors speak of the body's own places.
        body = bytes(msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_RawBody).body)
        request_id = REQUEST_PREFIX + _digest(envelope.custom_id.encode() + b"\0" + data)
        return Line(number, request_id, envelope.custom_id, envelope.url, body)

    def _check(self, envelope: _Envelope) -> None:
        if not 0 < len(envelope.custom_id) <= MOST_ID_CHARS:
            raise InvalidRequest(f"`custom_id` must have 1 to {MOST_ID_CHARS} characters.", "custom_id")
        if envelope.method != "POST":
            raise InvalidRequest("`method` must be POST: all requests of a batch are.", "method")
        if envelope.body.get("stream"):
            raise InvalidRequest("A batch has no streams: leave `stream` out.", "body.stream")
        if envelope.body.get("background"):
            raise InvalidRequest("A batch is in the background as a whole: leave `background` out.", "body.background")
        digest = custom_id_digest(envelope.custom_id)
        if digest in self._seen:
            raise InvalidRequest("An earlier line has the same `custom_id`.", "custom_id")
        self._seen.add(digest)


def custom_id_digest(custom_id: str) -> bytes:
    """16 bytes that stand for a custom_id."""
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def _line_id(number: int, data: bytes) -> str:
    return LINE_PREFIX + _digest(b"%d\0" % number + data)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
