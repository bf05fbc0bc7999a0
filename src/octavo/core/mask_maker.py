"""The masks of a step, made in a thread while the model computes: nobody needs them before the logits are there."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from octavo.step import TokenMasks

if TYPE_CHECKING:
    from octavo.core.request import Request
    from octavo.core.structured import Compiler, Matcher, Words

logger = logging.getLogger("octavo.core")

NO_TOKEN = "no token is allowed"


class MaskMaker:
    """`start` and `finish` take turns, called by the engine's loop. In between no matcher may be touched."""

    def __init__(self, compiler: Compiler, num_words: int) -> None:
        self.num_words = num_words  # of one mask
        self._compiler = compiler
        self._tasks: SimpleQueue[tuple[TokenMasks, list[Request]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._done.set()
        self._errors: dict[int, str] = {}
        self._words: Words = (ctypes.c_uint32 * 0)()

    def start(self, guided: dict[int, Request]) -> TokenMasks:
        """Begin with the masks of these slots' requests, at least one. All of them have a matcher."""
        assert self._done.is_set(), "finish() comes first"
        num_words = len(guided) * self.num_words
        if len(self._words) != num_words:
            self._words = (ctypes.c_uint32 * num_words)()
        masks = TokenMasks(list(guided), self._words, self._done.wait)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="octavo-masks", daemon=True)
            self._thread.start()
        self._done.clear()
        self._tasks.put((masks, list(guided.values())))
        return masks

    def finish(self) -> dict[int, str]:
        """Wait for the thread. Returns slot -> what went wrong; the mask of such a slot means nothing."""
        self._done.wait()
        errors, self._errors = self._errors, {}
        return errors

    def _work(self) -> None:
        while True:
            masks, requests = self._tasks.get()
            try:
                self._errors = self._make(masks, requests)
            except Exception:
                logger.exception("The masks of a step could not be made.")
                self._errors = dict.fromkeys(masks.slots, "an internal error")
            finally:
                self._done.set()

    def _make(self, masks: TokenMasks, requests: list[Request]) -> dict[int, str]:
        matchers: list[Matcher] = [request.matcher for request in requests if request.matcher is not None]
        found = self._fill(matchers, masks.words)
        errors = {slot: error for slot, error in zip(masks.slots, found, strict=True) if error is not None}
        with memoryview(masks.words).cast("B") as data:
            num_bytes = 4 * self.num_words
            for i, (slot, request) in enumerate(zip(masks.slots, requests, strict=True)):
                words = data[i * num_bytes : (i + 1) * num_bytes]
                if _is_empty(words):
                    errors.setdefault(slot, NO_TOKEN)
                elif request.params.ignore_eos:
                    _without(words, request.eos_token_ids)
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
