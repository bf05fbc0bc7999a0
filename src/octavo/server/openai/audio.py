"""POST /v1/audio/transcriptions and /v1/audio/translations: from a form to what was said, as text or subtitles."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from octavo.base.errors import InvalidRequest, clip
from octavo.base.suggest import nearest
from octavo.media.part import MediaPart, checked_url
from octavo.served.models import Lease
from octavo.served.transcription import Piece, SpeechWishes, Task, Transcriber, Transcript
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import Exchange
from octavo.server.http.multipart import Form, FormFile
from octavo.server.http.pacing import KeepAlive
from octavo.server.http.sse import event
from octavo.server.http.streaming import stream_events
from octavo.server.openai.protocol.audio import (
    AUDIO_REFUSALS,
    DurationUsage,
    TranscriptionForm,
    TranscriptionReply,
    TranscriptionSegment,
    TranscriptionWord,
    TranscriptTextDelta,
    TranscriptTextDone,
    TranslationForm,
    VerboseTranscription,
)
from octavo.server.openai.protocol.common import ignored_fields, refuse_unsupported
from octavo.server.openai.serving import Serving
from octavo.server.openai.subtitles import srt, vtt
from octavo.text.speech import LANGUAGES

_TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
_VTT = [(b"content-type", b"text/vtt; charset=utf-8")]


class AudioHandler:
    """Of one task."""

    def __init__(self, serving: Serving, task: Task) -> None:
        self._serving = serving
        self._task: Task = task

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        file, request = self._read(exchange, await self._body(exchange))
        lease = serving.state.models.resolve(request.model)
        transcriber = _transcriber(lease)
        wishes = self._wishes(exchange, request)
        transcriber.check(wishes)
        async with exchange.cancelled_on_disconnect():
            sounds = transcriber.sounds
            if isinstance(file, MediaPart):
                sound = await sounds.of_part(file)
            else:
                sound = await sounds.of_file(file.data, "file")
            transcript = Transcript(transcriber, sound, wishes)
            async with aclosing(transcript.pieces()) as pieces:
                if request.stream:
                    await self._stream(exchange, transcript, pieces)
                else:
                    await self._send(exchange, request, transcript, [piece async for piece in pieces])

    # ------------------------------------------------------------ the request
    async def _body(self, exchange: Exchange) -> Mapping[str, Any]:
        """A form, or an object whose `file_url` is an address of the sound."""
        if (exchange.header(b"content-type") or "").partition(";")[0].strip().lower() != "application/json":
            return _form_body(await exchange.read_form(self._serving.state.config.max_media_bytes))
        body = await exchange.read_json()
        if not isinstance(body, dict):
            raise InvalidRequest("The body should be an object.")
        url = body.pop("file_url", None)
        if not isinstance(url, str):
            raise InvalidRequest(
                "The body is a form, multipart/form-data, with a `file`; or JSON with a `file_url`, an address of the "
                "sound or `data:audio/...`.",
                "file_url",
            )
        if "timestamp_granularities" in body:
            body["timestamp_granularities[]"] = body.pop("timestamp_granularities")
        checked = checked_url(url, "audio", "file_url")
        return body | {"file": MediaPart(kind="audio", param="file_url", place="file_url", url=checked)}

    def _read(self, exchange: Exchange, body: Mapping[str, Any]) -> tuple[FormFile | MediaPart, TranslationForm]:
        model = TranscriptionForm if self._task == "transcribe" else TranslationForm
        request = validate_body(model, body)
        refuse_unsupported(body, AUDIO_REFUSALS)
        if not isinstance(request.file, FormFile | MediaPart):
            raise InvalidRequest("`file` should be a file of the form, with a file name.", "file")
        known = {field.alias or name for name, field in model.model_fields.items()}
        if ignored := [name for name in ignored_fields(body, model, AUDIO_REFUSALS) if name not in known]:
            if self._serving.state.config.strict_requests:
                name = clip(ignored[0], 64)
                raise InvalidRequest(f"There is no field `{name}`{nearest(name, known)}", name)
            self._serving.note_ignored(exchange, ignored)
        self._check(request)
        return request.file, request

    def _check(self, request: TranslationForm) -> None:
        """Raise `InvalidRequest` for fields that do not go together, and for what is not computed."""
        wanted = request.response_format or "json"
        if request.stream and wanted != "json":
            raise InvalidRequest("`response_format` must be json when `stream` is true.", "response_format")
        granularities = getattr(request, "timestamp_granularities", None)
        if granularities and wanted != "verbose_json":
            raise InvalidRequest(
                "`timestamp_granularities[]` needs `response_format` to be verbose_json.", "timestamp_granularities[]"
            )

    def _wishes(self, exchange: Exchange, request: TranslationForm) -> SpeechWishes:
        return SpeechWishes(
            request_id=f"transcr-{exchange.scope['octavo.request_id']}",
            task=self._task,
            language=getattr(request, "language", None),
            prompt=request.prompt or "",
            words="word" in (getattr(request, "timestamp_granularities", None) or ()),
            temperature=request.temperature or 0.0,
            seed=request.seed or 0,
            priority=request.priority or 0,
            trace_headers=self._serving.trace_headers(exchange),
        )

    # ------------------------------------------------------------ the reply
    async def _stream(self, exchange: Exchange, transcript: Transcript, pieces: AsyncGenerator[Piece, None]) -> None:
        keep_alive = KeepAlive(exchange, self._serving.state.config.sse_keep_alive_interval)
        text = ""

        def encode(piece: Piece) -> bytes:
            nonlocal text
            delta = piece.text if text else piece.text.lstrip()
            text += delta
            return event(TranscriptTextDelta(delta))

        await stream_events(
            exchange, pieces, encode, keep_alive, lambda: event(TranscriptTextDone(text, _usage(transcript)))
        )

    async def _send(
        self, exchange: Exchange, request: TranslationForm, transcript: Transcript, pieces: list[Piece]
    ) -> None:
        text = "".join(piece.text for piece in pieces).strip()
        match request.response_format:
            case "text":
                await exchange.send_bytes(f"{text}\n".encode(), 200, _TEXT)
            case "srt":
                await exchange.send_bytes(srt(pieces).encode(), 200, _TEXT)
            case "vtt":
                await exchange.send_bytes(vtt(pieces).encode(), 200, _VTT)
            case "verbose_json":
                await exchange.send_json(self._verbose(transcript, pieces, text))
            case _:
                await exchange.send_json(TranscriptionReply(text, _usage(transcript)))

    def _verbose(self, transcript: Transcript, pieces: list[Piece], text: str) -> VerboseTranscription:
        return VerboseTranscription(
            task=self._task,
            language=LANGUAGES.get(transcript.language or "", "unknown"),
            duration=round(transcript.sound.seconds, 3),
            text=text,
            segments=[_segment(number, piece) for number, piece in enumerate(pieces)],
            usage=_usage(transcript),
            words=[word for piece in pieces for word in _words(piece)] if transcript.wishes.words else UNSET,
        )


def _transcriber(lease: Lease) -> Transcriber:
    if lease.model.speech is None:
        raise InvalidRequest(f"The model `{clip(lease.name, 200)}` does not transcribe sounds; Whisper does.", "model")
    return lease.model.speech


def _form_body(form: Form) -> Mapping[str, Any]:
    """Fields by name; of those that end in brackets, a list. Raises `InvalidRequest` for one that comes twice."""
    body: dict[str, Any] = {}
    for name, value in [*form.fields, *form.files]:
        if name.endswith("[]"):
            body.setdefault(name, []).append(value)
        elif name in body:
            raise InvalidRequest("The form has this field more than once.", clip(name, 64))
        else:
            body[name] = value
    # Some clients send empty fields for what was not filled in.
    return {name: value for name, value in body.items() if value != ""}


def _usage(transcript: Transcript) -> DurationUsage:
    return DurationUsage(math.ceil(transcript.sound.seconds))


def _segment(number: int, piece: Piece) -> TranscriptionSegment:
    return TranscriptionSegment(
        number,
        piece.seek,
        piece.start,
        piece.end,
        piece.text,
        piece.token_ids,
        piece.temperature,
        piece.avg_logprob,
        piece.compression_ratio,
        piece.no_speech_prob,
        UNSET if piece.words is None else _words(piece),
    )


def _words(piece: Piece) -> list[TranscriptionWord]:
    found = piece.words or ()
    return [TranscriptionWord(each.word.strip(), round(each.start, 2), round(each.end, 2)) for each in found]
