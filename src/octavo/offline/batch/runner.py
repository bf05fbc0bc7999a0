"""The run of a batch: many lines under way, each result written when it is there."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base.errors import EngineDead
from octavo.base.suggest import nearest
from octavo.offline.batch.calls import CallReply, call
from octavo.offline.batch.lines import Line, LineParser
from octavo.offline.batch.results import BatchResponse, BatchResult, ResultFile
from octavo.server.anthropic.errors import OVERLOADED
from octavo.server.http.errors import ErrorInfo, RouteNotServed, error_reply
from octavo.server.http.exchange import ASGIApp
from octavo.server.state import ServerState

logger = logging.getLogger(__name__)

#: Seconds between two tries of a line for which the engine's queue had no room.
RETRY_SECONDS = 0.05
#: Seconds between two lines of the log, where stderr is no terminal.
LOG_SECONDS = 10.0


class BatchRunner:
    """Runs the lines of one input against one application.

    `paths`: what a line may ask for; `window`: how many lines are under way at most.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: ServerState,
        paths: Collection[str],
        *,
        parser: LineParser,
        results: ResultFile,
        window: int,
    ) -> None:
        self._app = app
        self._state = state
        self._paths = paths
        self._parser = parser
        self._results = results
        self._window = window

    async def run(self, path: Path, progress: Progress) -> None:
        """Every line that has no result yet. Raises `BatchError`, and `EngineDead`: what was under way is not written
        then, nor when the run is cancelled."""
        lines = self._open_lines(path)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._window):
                    group.create_task(self._work(lines, progress))
        except BaseExceptionGroup as found:  # the first ended the others
            raise found.exceptions[0] from None

    def _open_lines(self, path: Path) -> Iterator[Line]:
        return (line for line in self._parser.lines(path) if not self._results.has(line))

    async def _work(self, lines: Iterator[Line], progress: Progress) -> None:
        """Line after line, until there are none. All workers take theirs from one iterator."""
        for line in lines:
            result = await self._result(line)
            self._results.add(result)
            progress.note(is_error=result.error is not None)
            await asyncio.sleep(0)  # lines that are wrong wait for nothing

    async def _result(self, line: Line) -> BatchResult:
        error = line.error
        if error is None and line.url.partition("?")[0] not in self._paths:
            known = ", ".join(sorted(self._paths))
            error = RouteNotServed(
                f"A batch has no {line.url[:200]!r}{nearest(line.url, self._paths)}: {known}.", "url"
            )
        if error is not None:
            return BatchResult(line.id, line.custom_id, None, error_reply(error).body.error)
        reply = await self._reply(line)
        request_id = reply.headers.get(b"x-request-id", b"").decode("latin-1")
        response = BatchResponse(reply.status, request_id, msgspec.Raw(_json_of(reply)))
        return BatchResult(line.id, line.custom_id, response, _error_of(reply))

    async def _reply(self, line: Line) -> CallReply:
        """The server's reply, when the queue had room for the request."""
        while True:
            reply = await call(self._app, line.url, line.body)
            dead = self._state.models.default.engine.dead_reason
            if reply.status == 503 and dead is not None:
                raise EngineDead(dead)
            if reply.status not in (429, OVERLOADED):
                return reply
            await asyncio.sleep(RETRY_SECONDS)


class _Error(msgspec.Struct):
    """What the errors of all APIs have of OpenAI's."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class _Body(msgspec.Struct):
    error: _Error


def _json_of(reply: CallReply) -> bytes:
    """The body of a reply; of one that is a text, such as subtitles, a string of it."""
    if reply.headers.get(b"content-type", b"").startswith(b"application/json"):
        return reply.body
    return msgspec.json.encode(reply.body.decode())


def _error_of(reply: CallReply) -> ErrorInfo | None:
    """The error of a reply: it stands in the result too, where readers of either look for one."""
    if reply.status < 400:
        return None
    error = msgspec.json.decode(reply.body, type=_Body).error
    return ErrorInfo(error.message, error.type, error.param, error.code)


class Progress:
    """Lines that are done: a bar on a terminal, else a line of the log now and then."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(
            total=total, initial=done, desc="batch", unit="line", file=sys.stderr, disable=not sys.stderr.isatty()
        )
        self._total, self._done, self._num_errors = total, done, 0
        self._told = time.monotonic()

    def note(self, *, is_error: bool) -> None:
        self._done += 1
        if is_error:
            self._num_errors += 1
            self._bar.set_postfix_str(f"{self._num_errors} with errors", refresh=False)
        self._bar.update(1)
        if self._bar.disable and time.monotonic() - self._told > LOG_SECONDS:
            self._told = time.monotonic()
            logger.info("%d of %d lines are done, %d of them with errors", self._done, self._total, self._num_errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._bar.close()
