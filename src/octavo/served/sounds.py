"""Sounds of callers as what an encoder of speech reads: files, addresses and samples, decoded and as frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.base.errors import InvalidRequest
from octavo.media.decoder import MediaDecoder
from octavo.media.fetcher import Fetcher
from octavo.media.part import MediaPart
from octavo.served.media import MediaStats

if TYPE_CHECKING:
    import numpy as np

    from octavo.base.config import ServerConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Sound:
    """frames float32 [frames and a window of silence, channels], of which the first `num_frames` are the sound."""

    frames: np.ndarray
    num_frames: int
    seconds: float


class SoundReader:
    """On one event loop; `close` ends its helpers."""

    def __init__(self, window: int, channels: int, config: ServerConfig, decoder: MediaDecoder | None = None) -> None:
        """`window`: frames that the encoder takes at once, each of so many channels."""
        self.stats = MediaStats()
        self._window = window
        self._channels = channels
        self._config = config
        self._fetcher: Fetcher | None = None
        self._decoder = decoder or MediaDecoder(config.media_decode_timeout)
        self._threads = ThreadPoolExecutor(1, "speech")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._decoder.close()

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args))

    async def of_file(self, data: bytes, param: str) -> Sound:
        """Raises `InvalidRequest` naming `param`, or `Overloaded`."""
        self.stats.items["audio"] += 1
        self.stats.num_bytes += len(data)
        started = time.monotonic()
        try:
            decoded = await self._decoder.decode(
                "audio", [data], {"max_seconds": self._config.max_audio_seconds}, param
            )
        except InvalidRequest:
            self.stats.num_refused += 1
            raise
        self.stats.seconds["decode"] += time.monotonic() - started
        return await self._prepared(decoded["blobs"][0], decoded["rate"])

    async def of_part(self, part: MediaPart) -> Sound:
        """Of an address, or of what a program gives. Raises as `of_file`."""
        if part.values is not None:
            from octavo.served import media_values  # with numpy

            blobs = await self.in_thread(media_values.blobs, part)
            decoded = media_values.decoded(blobs)
            self.stats.items["audio"] += 1
            self.stats.num_bytes += len(blobs[1])
            return await self._prepared(decoded["blobs"][0], decoded["rate"])
        started = time.monotonic()
        if self._fetcher is None:
            self._fetcher = Fetcher(self._config)
        try:
            data = await self._fetcher.bytes_of(part.url or "", part.param)
        except InvalidRequest:
            self.stats.num_refused += 1
            raise
        self.stats.seconds["fetch"] += time.monotonic() - started
        return await self.of_file(data, part.param)

    async def _prepared(self, samples: bytes, rate: int) -> Sound:
        started = time.monotonic()
        sound = await self.in_thread(self._frames, samples, rate)
        self.stats.seconds["prepare"] += time.monotonic() - started
        return sound

    def _frames(self, blob: bytes, rate: int) -> Sound:
        import numpy as np  # with the first sound

        from octavo.text.media.mel import HOP, RATE, log_mel, resampled

        samples = resampled(np.frombuffer(blob, np.float32), rate)
        size = self._window * HOP
        # A window of silence behind a long sound: its last window is a whole one.
        silence = size - len(samples) if len(samples) <= size else size
        frames = log_mel(np.pad(samples, (0, silence)), self._channels)
        return Sound(frames, -(-len(samples) // HOP), len(samples) / RATE)
