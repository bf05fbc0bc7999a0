"""Decides, before a request is admitted, whether its grammar compiles: in a helper process that may be killed.

One helper serves all requests, one grammar at a time; a crash or a hang costs the grammar in hand a 400 and the
helper its life. What was proven once is remembered, within a bound of bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import sys
from collections import OrderedDict
from typing import Any, Final

from octavo.base.errors import InvalidRequest, Overloaded, ServerError
from octavo.base.params import GrammarSpec

logger = logging.getLogger(__name__)

#: Seconds that a new helper gets to start, on a machine that is busy with other things.
START_SECONDS: Final = 30.0
#: Bytes that an entry of the cache takes beside its texts.
_ENTRY_BYTES: Final = 400
_CRASHED: Final = "The compilation of the grammar failed; it is too complex."


class GrammarChecker:
    """`check` on one event loop, `close` at the end."""

    def __init__(
        self,
        *,
        seconds: float = 5.0,
        cache_bytes: int = 16 << 20,
        max_queued: int = 64,
        command: tuple[str, ...] = (sys.executable, "-m", "octavo.text.grammars.helper"),
    ) -> None:
        """`seconds`: how long one compilation may take; `max_queued`: how many may wait for the helper."""
        self._seconds = seconds
        self._cache_bytes = cache_bytes
        self._max_queued = max_queued
        self._command = command
        self._helper: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._num_queued = 0
        self._proven: OrderedDict[str, str] = OrderedDict()  # newest last
        self.num_cached_bytes = 0

    async def check(self, spec: GrammarSpec) -> str:
        """The canonical grammar for the engine. Raises `InvalidRequest`, `param` as in `spec`; `Overloaded`."""
        key = json.dumps([spec.kind, spec.source, spec.options, spec.frames], sort_keys=True)
        known = self._proven.get(key)
        if known is not None:
            self._proven.move_to_end(key)
            return known
        if self._num_queued >= self._max_queued:
            raise Overloaded("Too many new grammars are waiting to be compiled. Try again later.")
        self._num_queued += 1
        try:
            async with self._turn:
                if (known := self._proven.get(key)) is None:
                    known = await self._prove(spec)
                    self._remember(key, known)
                return known
        finally:
            self._num_queued -= 1

    async def close(self) -> None:
        await self._kill()

    def _remember(self, key: str, grammar: str) -> None:
        self._proven[key] = grammar
        self.num_cached_bytes += _size(key, grammar)
        while self.num_cached_bytes > self._cache_bytes:
            self.num_cached_bytes -= _size(*self._proven.popitem(last=False))

    async def _prove(self, spec: GrammarSpec) -> str:
        is_done = False
        try:
            helper = await self._started()
            request = {"kind": spec.kind, "source": spec.source, "options": spec.options, "frames": spec.frames}
            async with asyncio.timeout(self._seconds):
                assert helper.stdin is not None
                helper.stdin.write(_framed(request))
                reply = await _reply(helper)
            is_done = True
        except TimeoutError:
            message = f"The compilation of the grammar takes longer than {self._seconds:g} s; it is too complex."
            raise InvalidRequest(message, spec.param) from None
        except (OSError, EOFError):
            raise InvalidRequest(_CRASHED, spec.param) from None
        finally:
            if not is_done:  # also when this request was cancelled: its answer must not be another's
                await self._kill()
        if "grammar" not in reply:
            raise InvalidRequest(f"`{spec.param}` cannot be enforced: {reply.get('error')}", spec.param)
        return str(reply["grammar"])

    async def _started(self) -> asyncio.subprocess.Process:
        helper = self._helper
        if helper is not None and helper.returncode is None:
            return helper
        pipe = asyncio.subprocess.PIPE
        helper = self._helper = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        try:
            async with asyncio.timeout(START_SECONDS):
                await _reply(helper)
        except (TimeoutError, OSError, EOFError) as exc:
            logger.error("the process that compiles grammars did not start: %r", exc)
            raise ServerError("Grammars cannot be compiled at the moment.") from exc
        return helper

    async def _kill(self) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        with contextlib.suppress(ProcessLookupError):
            helper.kill()
        if helper.stdin is not None:
            helper.stdin.close()
        # Reaped even if this task is being cancelled.
        await asyncio.shield(helper.wait())


def _size(key: str, grammar: str) -> int:
    return len(key) + len(grammar) + _ENTRY_BYTES


def _framed(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<I", len(data)) + data


async def _reply(helper: asyncio.subprocess.Process) -> dict[str, Any]:
    assert helper.stdout is not None
    (size,) = struct.unpack("<I", await helper.stdout.readexactly(4))
    reply: dict[str, Any] = json.loads(await helper.stdout.readexactly(size))
    return reply
