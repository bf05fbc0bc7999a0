"""A helper process that does what may hang or crash: one question at a time, and killed when its time is up.

What comes from strangers (a grammar, a template, a picture) is handled in a process of its own, because neither native
code nor one long call of the interpreter can be interrupted from within. A crash or a hang costs the question in hand
an error and the helper its life; the next question starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import subprocess
import sys
import threading
from typing import Any, BinaryIO, Final

from octavo.base.errors import ServerError
from octavo.base.frames import read_frame, write_frame

logger = logging.getLogger(__name__)

#: Seconds that a new helper gets to start, on a machine that is busy with other things.
START_SECONDS: Final = 30.0


class HelperEnded(Exception):
    """The helper ended before it had answered: it crashed, ran out of memory, or was told to."""


class HelperProcess:
    """Started when it is needed. `ask` and `close` may be called from any thread."""

    def __init__(self, command: tuple[str, ...], does: str) -> None:
        """`command` answers frames (`serve_frames`); `does` says for what it is there, as in "compiles grammars"."""
        self._command = command
        self._does = does
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: subprocess.Popen[bytes] | None = None  # on its way out, though it may look alive
        self._turn = threading.Lock()

    @staticmethod
    def command(module: str) -> tuple[str, ...]:
        return (sys.executable, "-m", module)

    @property
    def pid(self) -> int | None:
        """Of the helper that runs, if one does."""
        return None if self._process is None else self._process.pid

    def ask(self, request: Any, seconds: float, is_dropped: threading.Event | None = None) -> dict[str, Any]:
        """The answer to `request`, which JSON must be able to hold (`TypeError`, `ValueError`).

        Raises `TimeoutError` behind `seconds`, `HelperEnded`, and `ServerError` when no helper can be started.
        """
        with self._turn:
            process = self._started()
            is_done = False
            try:
                if is_dropped is not None and is_dropped.is_set():
                    raise HelperEnded
                write_frame(_stream(process.stdin), request)
                reply = _reply(process, seconds)
                is_done = True
                return reply
            except (OSError, EOFError) as exc:
                if isinstance(exc, TimeoutError):
                    raise
                raise HelperEnded from None
            finally:
                if not is_done:  # its answer must not be the next question's
                    self._kill()

    async def ask_async(self, request: Any, seconds: float) -> dict[str, Any]:
        """`ask`, on an event loop. When the caller is cancelled, the helper is killed."""
        is_dropped = threading.Event()
        try:
            return await asyncio.to_thread(self.ask, request, seconds, is_dropped)
        except asyncio.CancelledError:
            is_dropped.set()
            self._interrupt()
            raise

    def close(self) -> None:
        """End the helper, in the middle of a question if need be. A later question starts a new one."""
        self._interrupt()  # before the turn: the thread that has it waits for the helper
        with self._turn:
            self._kill()

    def _interrupt(self) -> None:
        if (process := self._process) is not None:
            self._killed = process
            process.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and process is not self._killed and process.poll() is None:
            return process
        self._kill()
        try:
            process = self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _reply(process, START_SECONDS)
        except (OSError, EOFError) as exc:
            self._kill()
            logger.error("the process that %s did not start: %r", self._does, exc)
            raise ServerError(f"The process that {self._does} cannot be started at the moment.") from exc
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(OSError):  # what was not sent yet
            _stream(process.stdin).close()
        _stream(process.stdout).close()
        process.wait()


def _stream(pipe: Any) -> BinaryIO:
    assert pipe is not None
    stream: BinaryIO = pipe
    return stream


def _reply(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """The helper's next frame. Raises `TimeoutError`, or `EOFError` when the helper has ended."""
    stdout = _stream(process.stdout)
    poll = select.poll()  # `select.select` cannot take the numbers of a server with many connections
    poll.register(stdout, select.POLLIN)
    if not poll.poll(seconds * 1000):
        raise TimeoutError
    try:
        reply: dict[str, Any] | None = read_frame(stdout)
    except ValueError:  # it was killed while it wrote
        reply = None
    if reply is None:
        raise EOFError
    return reply
