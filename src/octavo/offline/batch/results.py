"""The file of results: one line a request, appended whole when it is done, so that a run can be killed at any time."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from octavo.offline.batch.lines import LINE_PREFIX, REQUEST_PREFIX, BatchError, Line, custom_id_digest
from octavo.server.http.errors import ErrorInfo

logger = logging.getLogger(__name__)

_BEGINNING = b'{"id":"batch_'


class BatchResponse(msgspec.Struct):
    """What the server would have replied. `body` is JSON."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchResult(msgspec.Struct):
    """A line of the output, as OpenAI's batches have it. One of the last two is None, or both tell of an error."""

    id: str
    custom_id: str | None
    response: BatchResponse | None
    error: ErrorInfo | None


class _Known(msgspec.Struct):
    """What a later run needs of a result."""

    id: str
    custom_id: str | None
    response: Any
    error: Any


class ResultFile:
    """Owns the file while it is open; another run that wants it is refused. Not for several threads."""

    def __init__(self, path: Path) -> None:
        """Opens the file, reads what an earlier run has left, and cuts off a line that was not finished.

        Raises `BatchError` for a file that holds anything else, and leaves that as it is.
        """
        self.path = path
        self.num_errors = 0  # of all results in the file
        self._requests: dict[bytes, str] = {}  # digest of the custom_id -> id
        self._lines: set[str] = set()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as exc:
            raise BatchError(f"{path} cannot be written: {exc.strerror}") from exc
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise BatchError(f"{path} is not a regular file, of which a later run could read what was done")
            self._lock()
            self._read()
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    @property
    def num_results(self) -> int:
        return len(self._requests) + len(self._lines)

    def has(self, line: Line) -> bool:
        """Whether the result of a line is there. Raises `BatchError` where its custom_id has that of another one."""
        if line.id.startswith(LINE_PREFIX) or line.custom_id is None:
            return line.id in self._lines
        known = self._requests.get(custom_id_digest(line.custom_id))
        if known is not None and known != line.id:
            raise BatchError(
                f"{self.path} has a result for the custom_id {line.custom_id!r} of line {line.number}, but of another "
                "request: write to another file, or remove that result."
            )
        return known is not None

    def add(self, result: BatchResult) -> None:
        """Append a result. Raises `BatchError` where it cannot be written."""
        data = memoryview(msgspec.json.encode(result) + b"\n")
        try:
            while data:  # a disk that is full takes a part; the next run cuts it off
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            raise BatchError(f"{self.path} cannot be written: {exc.strerror}") from exc
        self._note(result.id, result.custom_id, is_error=result.error is not None)

    def _note(self, result_id: str, custom_id: str | None, *, is_error: bool) -> None:
        self.num_errors += is_error
        if result_id.startswith(REQUEST_PREFIX) and custom_id is not None:
            self._requests[custom_id_digest(custom_id)] = result_id
        else:
            self._lines.add(result_id)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{self.path} is being written by another run") from None
        except OSError:
            logger.debug("%s: a file system without locks", self.path)

    def _read(self) -> None:
        size = 0  # of the lines that are whole
        with open(self.path, "rb") as file:
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    if data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
                        raise self._foreign(number)
                    os.ftruncate(self._fd, size)
                    break
                self._take(number, data)
                size += len(data)

    def _take(self, number: int, data: bytes) -> None:
        if not data.startswith(_BEGINNING):
            raise self._foreign(number)
        try:
            known = msgspec.json.decode(data, type=_Known)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._foreign(number) from None
        self._note(known.id, known.custom_id, is_error=known.error is not None)

    def _foreign(self, number: int) -> BatchError:
        return BatchError(
            f"{self.path}, line {number}, is no result of octavo run-batch: name a file that is not there yet, or one "
            "whose run should go on"
        )
