"""Transcripts for programs: `LLM.transcribe`."""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base.errors import InvalidRequest, Overloaded, clip
from octavo.media.part import MediaPart, checked_url
from octavo.served.sounds import Sound
from octavo.served.transcription import Piece, SpeechWishes, Task, Transcriber, Transcript

if TYPE_CHECKING:
    from octavo.launch.engine_thread import EngineThread
    from octavo.served.model import ServedModel

#: A file's path or bytes, an address (http, https, data, file), or samples and how many of them make a second.
Audio: TypeAlias = str | os.PathLike[str] | bytes | tuple[Any, int]

#: Sounds that are under way at once.
_SOUNDS: Final = 16
#: Seconds between two tries while other threads' requests fill the queue.
_RETRY_SECONDS: Final = 0.05
_ADDRESSES: Final = ("http://", "https://", "data:", "file:")


@dataclass(frozen=True, slots=True)
class TranscriptionOutput:
    """What was said in one sound of `duration` seconds. `language`: a code such as "en"; None: nothing was heard."""

    request_id: str
    text: str
    language: str | None
    duration: float
    segments: list[Piece]
    finished: bool = True


class TranscriptionCalls:
    """The call of `octavo.LLM` for models that transcribe."""

    _thread: EngineThread
    _model: ServedModel

    def transcribe(
        self,
        audio: Audio | list[Audio],
        *,
        language: str | None = None,
        task: Task = "transcribe",
        prompt: str = "",
        word_timestamps: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
        use_tqdm: bool = False,
    ) -> list[TranscriptionOutput]:
        """What is said in one sound or in each of a list, in their order.

        `language`: a code or an English name; None: what each sounds like. `task`: "transcribe", or "translate" to
        English. `prompt`: a text that came before, for names and style. `word_timestamps`: segments have `words`.
        `temperature` 0: greedy, and higher where that is no likely text. Raises `RequestError` naming what is wrong, or
        `ServerError`.
        """
        transcriber = self._model.speech
        if transcriber is None:
            raise InvalidRequest("The model does not transcribe sounds; Whisper does.", "model")
        if task not in ("transcribe", "translate"):
            raise InvalidRequest("`task` is transcribe or translate.", "task")
        if not 0.0 <= temperature <= 1.0:
            raise InvalidRequest("`temperature` is from 0 to 1.", "temperature")
        wishes = SpeechWishes(
            request_id="", task=task, language=language, prompt=prompt, words=word_timestamps,
            temperature=temperature, seed=seed,
        )  # fmt: skip
        transcriber.check(wishes)
        items: list[Any] = list(audio) if isinstance(audio, list) else [audio]
        given = [_given(item, f"audio.{place}") for place, item in enumerate(items)]
        with tqdm(total=len(given), desc="Transcribed sounds", unit="sound", disable=not use_tqdm) as bar:
            return self._thread.run(_all(transcriber, given, wishes, bar))


async def _all(
    transcriber: Transcriber, given: list[MediaPart | Path | bytes], wishes: SpeechWishes, bar: Any
) -> list[TranscriptionOutput]:
    """Some at a time. The first failure ends the others."""
    room = asyncio.Semaphore(_SOUNDS)

    async def run(place: int, each: MediaPart | Path | bytes) -> TranscriptionOutput:
        async with room:
            made = await _one(transcriber, each, f"audio.{place}", wishes)
            bar.update(1)
            return made

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(place, each)) for place, each in enumerate(given)]
    except BaseExceptionGroup as found:
        raise found.exceptions[0] from None
    return [task.result() for task in tasks]


async def _one(
    transcriber: Transcriber, given: MediaPart | Path | bytes, param: str, wishes: SpeechWishes
) -> TranscriptionOutput:
    sound: Sound | None = None
    own = replace(wishes, request_id=_id())
    while True:
        try:
            sound = sound or await _sound(transcriber, given, param)
            transcript = Transcript(transcriber, sound, own)
            async with aclosing(transcript.pieces()) as pieces:
                segments = [piece async for piece in pieces]
        except Overloaded:
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        text = "".join(piece.text for piece in segments).strip()
        return TranscriptionOutput(own.request_id, text, transcript.language, sound.seconds, segments)


async def _sound(transcriber: Transcriber, given: MediaPart | Path | bytes, param: str) -> Sound:
    if isinstance(given, MediaPart):
        return await transcriber.sounds.of_part(given)
    if isinstance(given, Path):
        try:
            data = await asyncio.to_thread(given.read_bytes)
        except OSError as exc:
            raise InvalidRequest(f"{given} cannot be read: {exc.strerror or exc}", param) from None
        return await transcriber.sounds.of_file(data, param)
    return await transcriber.sounds.of_file(given, param)


def _given(item: Any, param: str) -> MediaPart | Path | bytes:
    if isinstance(item, str) and item[:8].lower().startswith(_ADDRESSES):
        return MediaPart(kind="audio", param=param, place=param, url=checked_url(item, "audio", param))
    if isinstance(item, str | os.PathLike):
        return Path(item)
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, tuple) and len(item) == 2:
        return MediaPart(kind="audio", param=param, place=param, values=item)
    raise InvalidRequest(
        f"A sound is a path, an address, the bytes of a file, or a pair of samples and their rate; got "
        f"{clip(type(item).__name__, 50)}.",
        param,
    )


def _id() -> str:
    return f"llm-{uuid.uuid4().hex}"
