"""Inputs from addresses, and results to them."""

from __future__ import annotations

import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import octavo
from octavo.offline.batch.config import shown
from octavo.offline.batch.lines import BatchError

logger = logging.getLogger(__name__)

#: Seconds without a byte after which a transfer has failed.
QUIET_SECONDS = 60.0
#: Seconds before each further try of a transfer that failed for a reason that may pass.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
_CHUNK = 1 << 20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

Sleep = Callable[[float], None]


def fetch(url: str, file: BinaryIO, sleep: Sleep = time.sleep) -> None:
    """Write what is at `url` into `file`. Raises `BatchError`."""

    def once() -> None:
        file.seek(0)
        file.truncate()
        with _opened(urllib.request.Request(url)) as reply:
            while chunk := reply.read(_CHUNK):
                file.write(chunk)
            # Read in pieces, the library takes a connection that was cut for the end.
            length = reply.headers.get("content-length")
            if length is not None and int(length) != file.tell():
                raise http.client.IncompleteRead(b"", int(length) - file.tell())
        file.flush()

    _retried(once, "GET", url, sleep)


def put(path: Path, url: str, sleep: Sleep = time.sleep) -> None:
    """Send a file to `url`, as it is. Raises `BatchError`."""

    def once() -> None:
        with path.open("rb") as file:
            # What signed addresses of object stores expect of a client that says nothing else.
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
            request = urllib.request.Request(url, data=file, headers=headers, method="PUT")
            with _opened(request) as reply:
                reply.read()

    _retried(once, "PUT", url, sleep)


def _opened(request: urllib.request.Request) -> http.client.HTTPResponse:
    request.add_header("User-Agent", f"octavo/{octavo.__version__}")
    reply: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=QUIET_SECONDS)
    return reply


def _retried(once: Callable[[], None], method: str, url: str, sleep: Sleep) -> None:
    for seconds in (*RETRY_SECONDS, None):
        try:
            once()
        except urllib.error.HTTPError as exc:
            exc.close()
            reason, may_pass = f"it answered {exc.code} {_phrase(exc.code)}".rstrip(), exc.code in _PASSING
        except (OSError, http.client.HTTPException, ValueError) as exc:
            cause = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            reason, may_pass = str(cause) or type(cause).__name__, not isinstance(exc, ValueError)
        else:
            return
        if seconds is None or not may_pass:
            raise BatchError(f"{method} {shown(url)} failed: {reason}")
        logger.warning("%s %s failed: %s; next try in %g s", method, shown(url), reason, seconds)
        sleep(seconds)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
