"""Bytes to pixels, samples and pages, in helper processes that are killed when their time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.base.errors import InvalidRequest, Overloaded
from octavo.base.helper_process import HelperEnded, HelperProcess

COMMAND: Final = HelperProcess.command("octavo.media.decoding.helper")
#: One that takes its full time must not hold up all others.
NUM_HELPERS: Final = 2
MAX_WAITING: Final = 128

_NAMES: Final = {"image": "image", "audio": "sound", "video": "video", "frames": "video", "file": "file"}


def helper(command: tuple[str, ...] = COMMAND) -> HelperProcess:
    return HelperProcess(command, "decodes media")


class MediaDecoder:
    """Helpers are started when they are needed. On one event loop."""

    def __init__(self, seconds: float, helpers: Sequence[HelperProcess] | None = None) -> None:
        self._seconds = seconds
        self._helpers = [helper() for _ in range(NUM_HELPERS)] if helpers is None else list(helpers)
        self._idle = list(self._helpers)
        self._places = asyncio.Semaphore(len(self._helpers))
        self._num_waiting = 0

    async def decode(self, kind: str, blobs: Sequence[bytes], options: Mapping[str, Any], param: str) -> dict[str, Any]:
        """What the helper makes of it (`decoding.helper`). Raises `InvalidRequest` naming `param`, or `Overloaded`."""
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded("Too many media are waiting to be decoded. Try again later.")
        self._num_waiting += 1
        try:
            async with self._places:
                return await self._asked(kind, blobs, options, param)
        finally:
            self._num_waiting -= 1

    async def _asked(self, kind: str, blobs: Sequence[bytes], options: Mapping[str, Any], param: str) -> dict[str, Any]:
        helper = self._idle.pop()
        name = _NAMES[kind]
        question = {"kind": kind, "options": dict(options), "seconds": self._seconds, "blobs": list(blobs)}
        try:
            reply = await helper.ask_async(question, self._seconds)
        except TimeoutError:
            raise InvalidRequest(
                f"The {name} cannot be read: it takes more than {self._seconds:g} s (--media-decode-timeout).", param
            ) from None
        except HelperEnded:
            raise InvalidRequest(
                f"The {name} cannot be read: it is damaged, or needs too much memory.", param
            ) from None
        finally:
            self._idle.append(helper)
        if "refused" in reply:
            raise InvalidRequest(f"The {name} cannot be read: {reply['refused']}.", param)
        return reply

    async def close(self) -> None:
        for helper in self._helpers:
            helper.close()
