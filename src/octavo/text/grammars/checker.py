"""Decides, before a request is admitted, whether its grammar compiles: in a helper process that may be killed.

One helper serves all requests, one grammar at a time; a crash or a hang costs the grammar in hand a 400 and the
helper its life. What was proven once is remembered, within a bound of bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Final

from octavo.base.errors import InvalidRequest, Overloaded
from octavo.base.helper_process import HelperEnded, HelperProcess
from octavo.base.params import GrammarSpec

COMMAND: Final = HelperProcess.command("octavo.text.grammars.helper")
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
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        """`seconds`: how long one compilation may take; `max_queued`: how many may wait for the helper."""
        self._seconds = seconds
        self._cache_bytes = cache_bytes
        self._max_queued = max_queued
        self._helper = HelperProcess(command, "compiles grammars")
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
        self._helper.close()

    def _remember(self, key: str, grammar: str) -> None:
        self._proven[key] = grammar
        self.num_cached_bytes += _size(key, grammar)
        while self.num_cached_bytes > self._cache_bytes:
            self.num_cached_bytes -= _size(*self._proven.popitem(last=False))

    async def _prove(self, spec: GrammarSpec) -> str:
        request = {"kind": spec.kind, "source": spec.source, "options": spec.options, "frames": spec.frames}
        try:
            reply = await self._helper.ask_async(request, self._seconds)
        except TimeoutError:
            message = f"The compilation of the grammar takes longer than {self._seconds:g} s; it is too complex."
            raise InvalidRequest(message, spec.param) from None
        except HelperEnded:
            raise InvalidRequest(_CRASHED, spec.param) from None
        if "grammar" not in reply:
            raise InvalidRequest(f"`{spec.param}` cannot be enforced: {reply.get('error')}", spec.param)
        return str(reply["grammar"])


def _size(key: str, grammar: str) -> int:
    return len(key) + len(grammar) + _ENTRY_BYTES
