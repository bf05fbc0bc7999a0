"""The media of a conversation: collected from its messages, loaded, and prepared by the model's processor.

    messages --collect--> MediaPart --fetch, decode--> pixels --processor--> PreparedMedia
    messages with a mark ({"type": "image"}) for each --template--> text --expand--> token ids --place--> MediaItem

What is prepared is kept by the digest of what was sent, so that a conversation that sends its pictures with every turn
pays for them once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from octavo.base.config.media import MediaConfig, media_limits
from octavo.base.errors import InvalidConfig, InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.media.decoder import MediaDecoder
from octavo.media.fetcher import Fetcher, base64_bytes
from octavo.media.part import DETAILS, GivenMedia, MediaPart, media_part
from octavo.served.media_cache import MediaCache
from octavo.served.media_settings import MediaSettings, Settled
from octavo.served.media_text import Mark, MediaText
from octavo.served.parts import SoundProcessor, VideoProcessor
from octavo.served.turn import MediaOptions
from octavo.text.media.processor import MediaProcessor

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
#: Of a model that sees, hears, or both.
AnyProcessor = MediaProcessor | SoundProcessor

_LIST_OF_JPEG: Final = "data:video/jpeg;base64,"
#: Most frames within a `data:video/jpeg` URL.
_MAX_LISTED: Final = 4096


#: What a part becomes: texts and media, in order.
Pieces = list[str | Mark]


@dataclass(frozen=True, slots=True)
class Collected:
    """Messages with marks in place of their media, and these in the order of the marks."""

    messages: list[Mapping[str, Any]]
    marks: list[Mark]


@dataclass(slots=True)
class MediaStats:
    """Totals since the start."""

    items: Counter[str] = field(default_factory=Counter)  # by kind
    num_bytes: int = 0  # as sent or fetched
    num_refused: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"fetch": 0.0, "decode": 0.0, "prepare": 0.0})


def refuse_media(messages: Messages, options: MediaOptions) -> None:
    """Of a model that takes text only. Parts that are as a caller of the chat API sent them are left to the renderer.

    Raises `InvalidRequest`.
    """
    for name, value in (("mm_processor_kwargs", options.processor), ("media_io_kwargs", options.io)):
        if value:
            raise InvalidRequest(f"This model takes text only; `{name}` says nothing to it.", name)
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, GivenMedia):
                raise InvalidRequest(part.refusal, part.place)


def media_reader(
    processor: AnyProcessor | None, config: MediaConfig, *, most_items: int = 0, rows_width: int = 0
) -> MediaReader | None:
    """None for a model that takes text only. `most_items`: that the model takes of a request; 0: as many as fit.
    `rows_width`: of rows that are ready; 0: it takes none.

    Raises `InvalidConfig` where `config` allows more.
    """
    if processor is not None:
        if 0 < most_items < (most := media_limits(config)["image"]):
            raise InvalidConfig(
                f"--limit-mm-per-prompt: image={most} is more than the model takes: at most {most_items} of a request"
            )
        return MediaReader(processor, config, rows_width=rows_width)
    if config.limit_mm_per_prompt is not None and any(json.loads(config.limit_mm_per_prompt).values()):
        raise InvalidConfig("--limit-mm-per-prompt: this model takes text only")
    return None


class MediaReader:
    """For a model with a processor. On one event loop; `close` ends its helpers."""

    def __init__(
        self,
        processor: AnyProcessor,
        config: MediaConfig,
        *,
        rows_width: int = 0,
        fetcher: Fetcher | None = None,
        decoder: MediaDecoder | None = None,
    ) -> None:
        self.processor = processor
        self.stats = MediaStats()
        self._rows_width = rows_width
        self._config = config
        self._limits = media_limits(config)
        self._settings = MediaSettings(config)
        self._fetcher = fetcher or Fetcher(config)
        self._decoder = decoder or MediaDecoder(config.media_decode_timeout)
        self._cache = MediaCache(config.mm_processor_cache_bytes)
        self._threads = ThreadPoolExecutor(2, "media")
        self._sounds = processor if isinstance(processor, SoundProcessor) else None
        self._pictures = processor if isinstance(processor, MediaProcessor) else None
        placeholders: dict[str, tuple[str, int]] = {}
        if self._pictures is not None:
            placeholders["image"] = (self._pictures.placeholder, self._pictures.placeholder_id)
        if self._sounds is not None:
            placeholders["audio"] = (self._sounds.audio_placeholder, self._sounds.audio_placeholder_id)
        self._videos = processor if isinstance(processor, VideoProcessor) else None
        if self._videos is not None and self._videos.video_placeholder_id < 0:
            self._videos = None  # a vocabulary without the token: frames are images
        if self._videos is not None:
            placeholders["video"] = (self._videos.video_placeholder, self._videos.video_placeholder_id)
        marks = {kind: getattr(processor, f"{kind}_mark", None) for kind in placeholders}
        self.text = MediaText(
            placeholders,
            shown={kind: mark for kind, mark in marks.items() if mark is not None},
            brings_bos=getattr(processor, "brings_bos", False),
            end_ids=getattr(processor, "end_ids", ()),
        )

    @property
    def kinds(self) -> frozenset[str]:
        """Of media that the model reads, and that requests may bring."""
        return frozenset(kind for kind in self.text.placeholders if self._limits[kind])

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._decoder.close()

    # ------------------------------------------------------------ from messages to marks
    async def collected(self, messages: Messages, options: MediaOptions, salt: str) -> Collected:
        """Raises `InvalidRequest` naming the part, or `Overloaded`."""
        found: list[tuple[int, int, MediaPart]] = []
        for i, message in enumerate(messages):
            content = message.get("content") if isinstance(message, Mapping) else None
            for j, part in enumerate(content) if isinstance(content, list) else ():
                medium: MediaPart | None = None
                if isinstance(part, GivenMedia):
                    medium = part.read()
                elif isinstance(part, Mapping):
                    medium = media_part(part, f"messages.{i}.content.{j}")
                if medium is not None:
                    found.append((i, j, medium))
        if not found:
            self._settings.under(options)  # what is wrong with them is wrong without media too
            return Collected(list(messages), [])
        pieces = await self.loaded([part for _, _, part in found], options, salt)
        at = {(i, j): own for (i, j, _), own in zip(found, pieces, strict=True)}
        shown = [_with_marks(message, i, at) for i, message in enumerate(messages)]
        return Collected(shown, [piece for own in pieces for piece in own if isinstance(piece, Mark)])

    async def loaded(self, parts: Sequence[MediaPart], options: MediaOptions, salt: str) -> list[Pieces]:
        """Each part as texts and media. Raises as `collected`."""
        try:
            self._check_counts(parts)
            settled = self._settings.under(options)
            return await _all([self._pieces(part, settled, salt) for part in parts])
        except InvalidRequest:
            self.stats.num_refused += 1
            raise

    def _check_counts(self, parts: Sequence[MediaPart]) -> None:
        counts: Counter[str] = Counter()
        for part in parts:
            kind = "image" if part.kind == "embeds" else part.kind
            if kind == "audio" and self._sounds is None:
                raise InvalidRequest("This model takes text and images, and no audio.", part.place)
            if kind != "audio" and self._pictures is None:
                raise InvalidRequest(f"This model takes text and audio, and no {kind}.", part.place)
            counts[kind] += 1
            if counts[kind] > self._limits[kind]:
                raise InvalidRequest(
                    f"At most {self._limits[kind]} {kind}(s) may be provided in one request. (--limit-mm-per-prompt)",
                    part.place,
                )

    # ------------------------------------------------------------ one part
    async def _pieces(self, part: MediaPart, settled: Settled, salt: str) -> Pieces:
        alias = None if part.uuid is None else (salt, part.kind, part.uuid)
        if part.url is None and part.data is None and part.values is None:
            return self._known(alias, part)
        started = time.monotonic()
        blobs = await self._blobs(part)
        self.stats.seconds["fetch"] += time.monotonic() - started
        self.stats.num_bytes += sum(map(len, blobs))
        self.stats.items["image" if part.kind == "embeds" else part.kind] += 1
        digest = await asyncio.to_thread(_source_digest, part, blobs, settled)
        self.stats.cache_queries += 1
        async with self._cache.turn(digest):  # who sends the same at the same time waits for the first
            pieces = self._cache.get(digest)
            if pieces is None:
                pieces = await self._made(part, blobs, settled)
                self._cache.put(digest, pieces)
            else:
                self.stats.cache_hits += 1
        if alias is not None:
            self._cache.name(alias, digest)
        return pieces

    def _known(self, alias: tuple[str, str, str] | None, part: MediaPart) -> Pieces:
        pieces = None if alias is None else self._cache.named(alias)
        if pieces is None:
            raise InvalidRequest("Nothing is kept under this `uuid` (any more); send the content again.", part.place)
        self.stats.cache_queries += 1
        self.stats.cache_hits += 1
        return pieces

    async def _blobs(self, part: MediaPart) -> list[bytes]:
        if part.values is not None:
            return await asyncio.to_thread(_value_blobs, part)
        if part.data is not None:
            return [await asyncio.to_thread(base64_bytes, part.data, part.param)]
        url = part.url or ""
        if part.kind == "video" and url[: len(_LIST_OF_JPEG)].lower() == _LIST_OF_JPEG:
            return await asyncio.to_thread(_listed_frames, url, part.param)
        return [await self._fetcher.bytes_of(url, part.param)]

    async def _made(self, part: MediaPart, blobs: list[bytes], settled: Settled) -> Pieces:
        if part.kind == "embeds":
            return [Mark("image", await self._in_thread(self._embeds, blobs[0], part.param))]
        started = time.monotonic()
        decoded = await self._decoded(part, blobs, settled)
        now = time.monotonic()
        self.stats.seconds["decode"] += now - started
        options = settled.processor if part.detail == "auto" else settled.processor | {"detail": part.detail}
        pieces = await self._in_thread(self._prepared, part, decoded, options)
        self.stats.seconds["prepare"] += time.monotonic() - now
        return pieces

    async def _decoded(self, part: MediaPart, blobs: list[bytes], settled: Settled) -> dict[str, Any]:
        if part.values is not None:
            return _decoded_values(part, blobs)
        options: dict[str, Any] = dict(settled.image)
        kind: str = part.kind
        if kind == "image":
            options["max_side"] = DETAILS[part.detail]
        elif kind == "audio":
            options = {"max_seconds": self._config.max_audio_seconds}
        elif kind == "file":
            options = {"max_pages": settled.max_pages}
        else:
            options["num_frames"] = settled.num_frames
            kind = "frames" if part.url and part.url[: len(_LIST_OF_JPEG)].lower() == _LIST_OF_JPEG else kind
        return await self._decoder.decode(kind, blobs, options, part.param)

    def _prepared(self, part: MediaPart, decoded: dict[str, Any], options: Mapping[str, Any]) -> Pieces:
        """In a thread: numpy lets the event loop run meanwhile."""
        blobs: list[bytes] = decoded["blobs"]
        try:
            if part.kind == "audio":
                return [Mark("audio", self._sound(blobs[0], decoded["rate"], options))]
            if part.kind == "image":
                return [self._image(decoded, blobs[0], options)]
            if part.kind == "video" and self._videos is not None:
                return [self._video(self._videos, decoded, options)]
            if part.kind == "video":
                return [self._image(frame, blob, options) for frame, blob in zip(decoded["frames"], blobs, strict=True)]
            pieces: Pieces = []
            pages = decoded["pages"]
            for i, (page, blob) in enumerate(zip(pages, blobs, strict=True), 1):
                pieces.append(f"{part.title or 'File'}, page {i} of {len(pages)}:\n{page['text']}".rstrip())
                pieces.append(self._image(page, blob, options))
            return pieces
        except InvalidRequest as exc:
            raise InvalidRequest(exc.message, exc.param or part.param) from None

    def _embeds(self, data: bytes, param: str) -> PreparedMedia:
        from octavo.served import media_values

        assert self._pictures is not None  # else the part was refused
        return media_values.embeds(data, self._pictures, self._rows_width, param)

    def _image(self, size: Mapping[str, int], rgb: bytes, options: Mapping[str, Any]) -> Mark:
        assert self._pictures is not None  # else the part was refused
        return Mark("image", self._pictures.image(_pixels(size, rgb), options))

    def _video(self, processor: VideoProcessor, decoded: Mapping[str, Any], options: Mapping[str, Any]) -> Mark:
        frames = [_pixels(frame, blob) for frame, blob in zip(decoded["frames"], decoded["blobs"], strict=True)]
        return Mark("video", processor.video(frames, decoded.get("times"), decoded.get("duration", 0.0), options))

    def _sound(self, samples: bytes, rate: int, options: Mapping[str, Any]) -> PreparedMedia:
        import numpy as np

        assert self._sounds is not None  # else the part was refused
        return self._sounds.audio(np.frombuffer(samples, np.float32), rate, options)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _pixels(size: Mapping[str, int], rgb: bytes) -> np.ndarray:
    import numpy as np  # with the first picture: a server of text needs none

    return np.frombuffer(rgb, np.uint8).reshape(size["height"], size["width"], 3)


def _with_marks(message: Mapping[str, Any], i: int, at: Mapping[tuple[int, int], Pieces]) -> Mapping[str, Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list) or not any((i, j) in at for j in range(len(content))):
        return message
    parts: list[Any] = []
    for j, part in enumerate(content):
        pieces = at.get((i, j))
        if pieces is None:
            parts.append(part)
            continue
        parts += [{"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind} for p in pieces]
    return {**message, "content": parts}


def _source_digest(part: MediaPart, blobs: Sequence[bytes], settled: Settled) -> bytes:
    """SHA-256 of all that the pieces of a part follow from."""
    facts = (part.kind, part.detail, part.title, part.values is None, settled.processor, settled.image)
    sizes = (settled.num_frames, settled.max_pages, list(map(len, blobs)))
    digest = hashlib.sha256(json.dumps((*facts, *sizes), sort_keys=True, default=str).encode())
    for blob in blobs:
        digest.update(blob)
    return digest.digest()


def _listed_frames(url: str, param: str) -> list[bytes]:
    """Frames of a video as images in base64, with commas between: what some clients send."""
    texts = url[len(_LIST_OF_JPEG) :].split(",", _MAX_LISTED)
    if len(texts) > _MAX_LISTED:
        raise InvalidRequest(f"At most {_MAX_LISTED} frames can be listed.", param)
    return [base64_bytes(text, param) for text in texts]


def _value_blobs(part: MediaPart) -> list[bytes]:
    from octavo.served import media_values

    return media_values.blobs(part)


def _decoded_values(part: MediaPart, blobs: list[bytes]) -> dict[str, Any]:
    from octavo.served import media_values

    return media_values.decoded(blobs)


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; the first error ends the others, and is raised when they have ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
