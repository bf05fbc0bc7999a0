"""Frames over one socket pair between the API process and the engine process.

A frame is a 4-byte little-endian length and that many bytes of msgpack: one message of `octavo.wire.messages` (the very
first one is the `EngineConfig`). Decoders are typed; bytes that are no such message raise `TransportError`, after
which the connection is of no further use: a broken sequence is never resynchronised.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from octavo.base.errors import OctavoError

#: Longest frame accepted, in bytes.
MAX_FRAME_BYTES = 256 * 1024 * 1024
#: Messages that may wait in the engine's send queue; beyond it the sender waits for its peer.
MAX_QUEUED_MESSAGES = 4096

logger = logging.getLogger("octavo.wire.transport")

_HEADER_BYTES = 4
_READ_BYTES = 256 * 1024

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class TransportError(OctavoError):
    """The peer sent something that is no message, or it is gone."""


def encode_frame(message: Any) -> bytes:
    """The message as one frame. Raises `TransportError` when it is longer than a frame may be."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise TransportError(f"A message of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}.")
    return len(body).to_bytes(_HEADER_BYTES, "little") + body


def make_decoder(message_type: Any) -> Callable[[bytes], Any]:
    """A function from a frame's bytes to a `message_type`; it raises `TransportError` for anything else."""
    decode = msgspec.msgpack.Decoder(message_type).decode

    def decode_frame(frame: bytes) -> Any:
        try:
            return decode(frame)
        # Besides its own errors the decoder raises these for maps with odd keys, deep nesting, and lengths
        # that promise more than there is.
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError, MemoryError) as exc:
            raise TransportError(f"A frame of {len(frame)} bytes is no valid message: {exc}") from exc

    return decode_frame


def receive_frame(sock: socket.socket) -> bytes:
    """Wait for exactly one frame: what follows it stays in the socket. Raises `TransportError` and OSError."""
    length = int.from_bytes(_receive_exactly(sock, _HEADER_BYTES), "little")
    if not 0 < length <= MAX_FRAME_BYTES:
        raise TransportError(f"A frame of {length} bytes was announced.")
    return _receive_exactly(sock, length)


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise TransportError("The connection was closed by the other side.")
        data += chunk
    return bytes(data)


class FrameReader:
    """Cuts a byte stream into frames; knows no socket. Memory is taken for bytes received, never for bytes promised."""

    __slots__ = ("_broken", "_buffer", "_max_frame_bytes")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes
        self._broken: str | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream and return the bodies of the frames that are now complete.

        Frames before the place where the stream breaks are returned; the next call, `feed(b"")` too, then raises.
        """
        if self._broken is not None:
            raise TransportError(self._broken)
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        start = 0
        while len(buffer) - start >= _HEADER_BYTES:
            body = start + _HEADER_BYTES
            length = int.from_bytes(buffer[start:body], "little")
            if not 0 < length <= self._max_frame_bytes:
                if frames:
                    break
                self._broken = f"A frame of {length} bytes was announced; 1 to {self._max_frame_bytes} are allowed."
                raise TransportError(self._broken)
            if len(buffer) - body < length:
                break
            frames.append(bytes(buffer[body : body + length]))
            start = body + length
        del buffer[:start]
        return frames

    def finish(self) -> None:
        """The stream ended. Raises `TransportError` when it ended inside a frame."""
        if self._buffer:
            self._broken = f"The stream ended inside a frame, {len(self._buffer)} bytes after its start."
            raise TransportError(self._broken)


class BlockingConnection:
    """The engine's end. First `receive` what comes before the loop, then `start` the two threads.

    The reader thread puts messages on `inbox`, and once, when the stream has ended or broken, what `start` was given
    for that. The writer thread encodes and sends what `send` queued, so that the next step runs meanwhile.
    """

    def __init__(self, sock: socket.socket, inbox: SimpleQueue[Any] | None = None) -> None:
        """`inbox`: one that other connections have too; None: one of its own."""
        self.inbox: SimpleQueue[Any] = inbox or SimpleQueue()
        self._sock = sock
        self._reader = FrameReader()
        self._frames: deque[bytes] = deque()
        self._outbox: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._broken = False
        self._writer_thread = threading.Thread(target=self._write_loop, name="octavo-writer", daemon=True)
        self._writer_thread.start()

    def receive(self, message_type: Any) -> Any:
        """Wait for one message. Raises `TransportError` at the end of the stream. Not after `start`."""
        while not self._frames:
            self._frames.extend(self._read())
        return make_decoder(message_type)(self._frames.popleft())

    def start(
        self, message_type: Any, on_close: Callable[[TransportError, Any], None] | None = None, end: object = None
    ) -> None:
        """Start the reader thread. `on_close` is called in it when the peer is gone or has sent nonsense, with the
        reason and the last message that came (None: there was none); `end` then goes to the inbox."""
        decode = make_decoder(message_type)

        def read_loop() -> None:
            message = None
            try:
                while True:
                    while self._frames:
                        message = decode(self._frames.popleft())
                        self.inbox.put(message)
                    self._frames.extend(self._read())
            except TransportError as exc:
                if on_close is not None and not self._closing:  # else it was our own close()
                    on_close(exc, message)
                self.inbox.put(end)

        threading.Thread(target=read_loop, name="octavo-reader", daemon=True).start()

    def send(self, message: Any, *, droppable: bool = False) -> None:
        """Queue a message. Waits while the queue is full, unless `droppable`: then the message is dropped.

        After the peer is gone messages are dropped in silence: its reader learns of the end by itself.
        """
        with self._changed:
            if droppable and len(self._outbox) >= MAX_QUEUED_MESSAGES:
                return
            while len(self._outbox) >= MAX_QUEUED_MESSAGES and not self._broken:
                self._changed.wait()
            if not self._broken and not self._closing:
                self._outbox.append(message)
                self._changed.notify_all()

    def close(self, timeout: float = 1.0) -> None:
        """Send what is queued, for at most `timeout` seconds, and close the socket."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer_thread.join(timeout)
        self._shutdown_socket()
        self._sock.close()

    def _read(self) -> list[bytes]:
        self._reader.feed(b"")  # nothing more is waited for when the stream broke behind the last frame
        try:
            data = self._sock.recv(_READ_BYTES)
        except OSError as exc:
            raise TransportError(f"The connection broke: {exc}") from exc
        if not data:
            self._reader.finish()
            raise TransportError("The connection was closed by the other side.")
        return self._reader.feed(data)

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                while not self._outbox and not self._closing:
                    self._changed.wait()
                if not self._outbox:
                    return
                batch = list(self._outbox)
                self._outbox.clear()
                self._changed.notify_all()
            try:
                self._sock.sendall(b"".join(map(encode_frame, batch)))
            except OSError:
                return self._break()  # the peer is gone, which the reader thread tells
            except (TransportError, TypeError, OverflowError, msgspec.MsgspecError) as exc:
                logger.error("A message to the other process could not be encoded: %r", exc)
                return self._break()  # a bug, of which both sides must learn

    def _break(self) -> None:
        """Nothing can be sent any more: let those go who wait to send, and wake both readers."""
        with self._changed:
            self._broken = True
            self._outbox.clear()
            self._changed.notify_all()
        self._shutdown_socket()

    def _shutdown_socket(self) -> None:
        """Wake the reader threads of both ends, which close() alone does not."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster


class Connection(Protocol[T_co]):
    """`AsyncConnection`, as its user sees it; tests put a fake in its place."""

    def send(self, message: Any) -> None: ...

    async def receive(self) -> T_co | None: ...

    async def close(self) -> None: ...


class AsyncConnection(Generic[T]):
    """The API process's end, in its event loop: `send` never waits, messages come by `receive` or `async for`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message_type: Any) -> None:
        self._stream = reader
        self._writer = writer
        self._reader = FrameReader()
        self._frames: deque[bytes] = deque()
        self._decode = make_decoder(message_type)

    @classmethod
    async def open(cls, sock: socket.socket, message_type: Any) -> AsyncConnection[T]:
        """Take over `sock`, an end of a stream socket pair. `message_type`: e.g. `messages.FromEngine`."""
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_READ_BYTES)
        return cls(reader, writer, message_type)

    def send(self, message: Any) -> None:
        """Write a message to the transport's buffer. Raises `TransportError` when the connection is closed."""
        if self._writer.is_closing():
            raise TransportError("The connection is closed.")
        self._writer.write(encode_frame(message))

    async def drain(self) -> None:
        """Wait until the transport's buffer is small again. Raises `TransportError` when the peer is gone."""
        try:
            await self._writer.drain()
        except OSError as exc:
            raise TransportError(f"The connection broke: {exc}") from exc

    async def receive(self) -> T | None:
        """The next message, or None at a clean end of the stream. Raises `TransportError` at a broken one."""
        while not self._frames:
            self._reader.feed(b"")  # as in BlockingConnection
            try:
                data = await self._stream.read(_READ_BYTES)
            except OSError as exc:
                raise TransportError(f"The connection broke: {exc}") from exc
            if not data:
                self._reader.finish()
                return None
            self._frames.extend(self._reader.feed(data))
        message: T = self._decode(self._frames.popleft())
        return message

    async def __aiter__(self) -> AsyncIterator[T]:
        while (message := await self.receive()) is not None:
            yield message

    async def close(self) -> None:
        """Close the socket; what is still in the buffer is sent first when the peer reads."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return
