"""The masks of a step, made in a thread while the model computes: nobody needs them before the logits are there."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from octavo.wire.step import TokenMasks

if TYPE_CHECKING:
    from octavo.core.grammar.structured import Compiler, Matcher, Words
    from octavo.core.request import Request

logger = logging.getLogger("octavo.core")

NO_TOKEN = "no token is allowed"


class MaskRow(NamedTuple):
    """A row that needs a mask: its slot, the request there, and that request's place in its grammar at this row."""

    slot: int
    request: Request
    matcher: Matcher


class MaskMaker:
    """`start` and `finish` take turns, called by the engine's loop. In between no matcher may be touched."""

    def __init__(self, compiler: Compiler, num_words: int) -> None:
        self.num_words = num_words  # of one mask
        self._compiler = compiler
        self._tasks: SimpleQueue[list[MaskRow]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._done.set()
        self._errors: dict[int, str] = {}
        self._rows: list[MaskRow] = []
        self._masks = bytearray()

    def start(self, rows: list[MaskRow]) -> None:
        """Begin with the masks of these rows, at least one. Rows of one slot stand together, the first first."""
        assert self._done.is_set(), "finish() comes first"
        num_bytes = 4 * len(rows) * self.num_words
        if len(self._masks) != num_bytes:
            self._masks = bytearray(num_bytes)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="octavo-masks", daemon=True)
            self._thread.start()
        self._rows = rows
        self._done.clear()
        self._tasks.put(rows)

    def finish(self) -> tuple[TokenMasks, dict[int, str]]:
        """Wait for the thread. Returns the masks, and slot -> what went wrong with the first row of that slot, whose
        mask means nothing. A later row that fails admits no token: a draft is verified up to there."""
        self._done.wait()
        errors, self._errors = self._errors, {}
        return TokenMasks([row.slot for row in self._rows], self._masks), errors

    def _work(self) -> None:
        while True:
            rows = self._tasks.get()
            try:
                self._errors = self._make(rows)
            except Exception:
                logger.exception("The masks of a step could not be made.")
                self._errors = {row.slot: "an internal error" for row in rows}
            finally:
                self._done.set()

    def _make(self, rows: list[MaskRow]) -> dict[int, str]:
        words = (ctypes.c_uint32 * (len(rows) * self.num_words)).from_buffer(self._masks)
        found = self._fill([row.matcher for row in rows], words)
        errors: dict[int, str] = {}
        num_bytes = 4 * self.num_words
        with memoryview(self._masks) as data:
            for i, (row, error) in enumerate(zip(rows, found, strict=True)):
                mask = data[i * num_bytes : (i + 1) * num_bytes]
                if error is None and _is_empty(mask):
                    error = NO_TOKEN
                if error is not None:
                    mask[:] = bytes(num_bytes)
                    if i == 0 or rows[i - 1].slot != row.slot:
                        errors[row.slot] = error
                elif row.request.params.ignore_eos:
                    _without(mask, row.request.eos_token_ids)
        return errors

    def _fill(self, matchers: list[Matcher], words: Words) -> list[str | None]:
        try:
            return self._compiler.fill(matchers, words)
        except BaseException as exc:  # noqa: BLE001  (a panic of the library is a BaseException)
            if len(matchers) == 1:
                return [f"{type(exc).__name__} in the grammar engine"]
        # One of them is to blame; the others are to go on.
        each = ctypes.c_uint32 * self.num_words
        found: list[str | None] = []
        for i, matcher in enumerate(matchers):
            found += self._fill([matcher], each.from_buffer(words, i * ctypes.sizeof(each)))
        return found


def _is_empty(words: memoryview) -> bool:
    return not bytes(words).strip(b"\0")


def _without(words: memoryview, token_ids: Iterable[int]) -> None:
    """Forbid `token_ids`, unless nothing else is allowed."""
    saved = [(i >> 3, words[i >> 3]) for i in token_ids if i >> 3 < len(words)]
    for i in token_ids:
        if i >> 3 < len(words):
            words[i >> 3] &= ~(1 << (i & 7)) & 0xFF
    if _is_empty(words):
        for index, byte in saved:
            words[index] |= byte
