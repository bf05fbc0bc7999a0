"""POST /v1/audio/transcriptions and /v1/audio/translations: fields of the form, and reply bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import ConfigDict, Field

from octavo.server.openai.protocol.common import Int, Refusals, WireModel, inert

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]


class TranslationForm(WireModel):
    """Values of a form are text: numbers are read from it."""

    model_config = ConfigDict(strict=False, extra="ignore", frozen=True)

    file: Annotated[Any, Field(json_schema_extra={"type": "string", "format": "binary"})]
    model: str | None = None
    prompt: str | None = None
    response_format: ResponseFormat | None = None
    temperature: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] | None = None
    seed: Int | None = None
    stream: bool | None = None
    priority: Int | None = None


class TranscriptionForm(TranslationForm):
    language: str | None = None
    timestamp_granularities: Annotated[
        list[Literal["segment", "word"]] | None, Field(alias="timestamp_granularities[]")
    ] = None


AUDIO_REFUSALS: Refusals = {
    "include": inert(None, [], ""),
    "include[]": inert(None, [], ""),
    "chunking_strategy": inert(None, "", "auto"),  # windows follow what was said, as "auto" wants it
    "hotwords": inert(None, ""),
    "known_speaker_names[]": inert(None, ""),
    "known_speaker_references[]": inert(None, ""),
}


# ---------------------------------------------------------------- replies
class DurationUsage(msgspec.Struct):
    seconds: int  # of sound, begun ones included
    type: str = "duration"


class TranscriptionReply(msgspec.Struct):
    text: str
    usage: DurationUsage


class TranscriptionWord(msgspec.Struct):
    word: str
    start: float  # seconds
    end: float


class TranscriptionSegment(msgspec.Struct):
    id: int
    seek: int  # the window that it was heard in, in hundredths of a second
    start: float  # seconds
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[TranscriptionWord] | UnsetType = UNSET


class VerboseTranscription(msgspec.Struct):
    task: str
    language: str
    duration: float
    text: str
    segments: list[TranscriptionSegment]
    usage: DurationUsage
    words: list[TranscriptionWord] | UnsetType = UNSET


class TranscriptTextDelta(msgspec.Struct):
    """An event of a stream."""

    delta: str
    type: str = "transcript.text.delta"


class TranscriptTextDone(msgspec.Struct):
    text: str
    usage: DurationUsage | UnsetType = UNSET
    type: str = "transcript.text.done"
