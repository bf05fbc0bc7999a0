"""From a sound to what was said in it, and when: window by window, each from where the last whole piece ended.

    sound    |--------------------------------------------------------------------|
    windows  |============|                  30 s; pieces are told by tokens of time
                      |============|         from the end of the last whole piece
                                 |=======....|   zeros behind the end

A window is a request of the engine: its frames, and a prompt of the text before it. What comes of it is taken back
and asked for again at a higher temperature, where it repeats itself or is unlikely; where nobody speaks it is left out.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from octavo.base.errors import InvalidRequest, clip
from octavo.base.media import MediaTensor
from octavo.base.params import GenerateRequest, SamplingParams, SpeechAlignment, SpeechRules
from octavo.base.suggest import nearest
from octavo.client.generation import Completion, fold
from octavo.media.decoder import MediaDecoder
from octavo.served.media import MediaStats
from octavo.served.sounds import Sound, SoundReader
from octavo.text.speech import LANGUAGES, TIME_STEP, SpeechVocabulary
from octavo.text.words import TimedToken, Word, first_moments, words_of

if TYPE_CHECKING:
    import numpy as np

    from octavo.base.config import ServerConfig
    from octavo.served.parts import Engine, Renderer, Tokenizer
    from octavo.wire.messages import EngineInfo

#: What a window is tried at, one behind the other.
TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
#: A text that can be made smaller than this repeats itself; one of a lower mean log probability is unlikely.
MAX_COMPRESSION: Final = 2.4
MIN_LOGPROB: Final = -1.0
#: Where silence is likelier than this, an unlikely text is none.
MAX_NO_SPEECH: Final = 0.6
#: Above this temperature a text is no example for what follows it.
_MAX_EXAMPLE_TEMPERATURE: Final = 0.5
_MAX_PROMPT_CHARS: Final = 100_000

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, kw_only=True)
class SpeechWishes:
    """What a caller wants to know of a sound. `temperature` 0: the lowest at which the text is a likely one."""

    request_id: str
    task: Task = "transcribe"
    language: str | None = None  # a code or a name; None: what the first window sounds like
    prompt: str = ""
    words: bool = False  # when each was said
    temperature: float = 0.0
    seed: int = 0
    priority: int = 0
    trace_headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Piece:
    """What was said from `start` to `end`, in seconds. The rest is that of the window that it is from."""

    start: float
    end: float
    text: str
    token_ids: list[int]
    seek: int  # the window's first frame
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None  # None: nobody asked


@dataclass(slots=True)
class _Window:
    """What came of one."""

    request: GenerateRequest
    known_ids: list[int]  # the prompt, and what was generated
    token_ids: list[int]  # of text and times: the last of those
    text: str
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    language: str | None  # as it was told or found
    compression_ratio: float = field(init=False)

    def __post_init__(self) -> None:
        data = self.text.encode()
        self.compression_ratio = len(data) / len(zlib.compress(data)) if data else 0.0

    @property
    def is_silent(self) -> bool:
        return self.no_speech_prob > MAX_NO_SPEECH and self.avg_logprob < MIN_LOGPROB

    @property
    def is_good(self) -> bool:
        is_likely = self.compression_ratio <= MAX_COMPRESSION and self.avg_logprob >= MIN_LOGPROB
        return is_likely or self.is_silent


class Transcript:
    """One sound as it is transcribed. `language`: a code, known when the first piece is."""

    def __init__(self, transcriber: Transcriber, sound: Sound, wishes: SpeechWishes) -> None:
        self.sound = sound
        self.language = transcriber.language_code(wishes.language)
        self._transcriber = transcriber
        self.wishes = wishes

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """In order. Closing it aborts. Raises `RequestError` before the first, and `ServerError`."""
        own, sound = self._transcriber, self.sound
        before = own.prompt_ids(self.wishes.prompt)
        is_first, seek = True, 0
        while seek < sound.num_frames or is_first:
            num_frames = min(own.window, sound.num_frames - seek)
            window = await own.window_text(sound.frames[seek : seek + own.window], before, self.wishes, self.language)
            self.language = self.language or window.language
            is_first = False
            if window.is_silent:
                seek += num_frames
                continue
            pieces, heard = cut(window.token_ids, own.vocabulary.first_time, num_frames)
            timed = await own.timed_tokens(window, num_frames, seek * _FRAME) if self.wishes.words else None
            told: list[int] = []
            first = 0
            for start, end, ids in pieces:
                text, first = own.text_of(ids), first + len(ids)
                if not text.strip() or end <= start:
                    continue
                told += ids
                words = None if timed is None else own.words(timed[first - len(ids) : first], self.language)
                yield Piece(
                    round(seek * _FRAME + start, 2), round(seek * _FRAME + end, 2), text, ids, seek,
                    window.temperature, window.avg_logprob, window.compression_ratio, window.no_speech_prob, words,
                )  # fmt: skip
            before = [*before, *told] if window.temperature <= _MAX_EXAMPLE_TEMPERATURE else []
            seek += max(heard, 1)


_FRAME: Final = TIME_STEP / 2


def cut(token_ids: list[int], first_time: int, num_frames: int) -> tuple[list[tuple[float, float, list[int]]], int]:
    """The pieces of a window (start and end in its seconds, tokens with their times), and how many of its frames were
    heard: up to the end of the last whole piece, where another follows it, and else all."""
    is_time = [token >= first_time for token in token_ids]
    joints = [i + 1 for i in range(len(token_ids) - 1) if is_time[i] and is_time[i + 1]]
    seconds = num_frames * _FRAME

    def at(token: int) -> float:
        return (token - first_time) * TIME_STEP

    if not joints:
        times = [token for token in token_ids if token >= first_time]
        start = at(times[0]) if times and is_time[0] else 0.0
        end = at(times[-1]) if times and times[-1] != first_time and len(times) > 1 else seconds
        return [(start, min(end, seconds), token_ids)], num_frames
    ends_whole = is_time[-2:] == [False, True]
    pieces, first = [], 0
    for end in [*joints, len(token_ids)] if ends_whole else joints:
        ids = token_ids[first:end]
        pieces.append((at(ids[0]), min(at(ids[-1]), seconds), ids))
        first = end
    if ends_whole:
        return pieces, num_frames
    return pieces, min(2 * (token_ids[joints[-1] - 1] - first_time), num_frames)


class Transcriber:
    """For a model whose encoder takes frames of sounds. On one event loop; `close` ends its helpers."""

    def __init__(
        self,
        vocabulary: SpeechVocabulary,
        engine: Engine,
        tokenizer: Tokenizer,
        renderer: Renderer,
        info: EngineInfo,
        config: ServerConfig,
        decoder: MediaDecoder | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.window = 2 * info.max_encoder_len  # frames
        self._engine = engine
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._info = info
        self.sounds = SoundReader(self.window, info.encoder_channels, config, decoder)

    async def close(self) -> None:
        await self.sounds.close()

    @property
    def stats(self) -> MediaStats:
        return self.sounds.stats

    # ------------------------------------------------------------ what goes in
    def language_code(self, language: str | None) -> str | None:
        """Raises `InvalidRequest` for one that the model does not know."""
        known = self.vocabulary.languages or {"en": 0}
        if not language:
            return None if self.vocabulary.languages else "en"
        wanted = language.strip().lower()
        by_name = {LANGUAGES[code]: code for code in known}
        code = by_name.get(wanted) or wanted.partition("-")[0]
        if code not in known:
            hint = nearest(wanted, [*known, *by_name])
            raise InvalidRequest(f"The model knows no language {clip(language, 50)!r}{hint}", "language")
        return code

    def check(self, wishes: SpeechWishes) -> None:
        """Raise `InvalidRequest` for what the model cannot do."""
        self.language_code(wishes.language)
        if wishes.task == "translate" and not self.vocabulary.languages:
            raise InvalidRequest("The model knows English alone: it translates nothing.", "model")
        if len(wishes.prompt) > _MAX_PROMPT_CHARS:
            raise InvalidRequest(f"`prompt` has at most {_MAX_PROMPT_CHARS} characters.", "prompt")

    def prompt_ids(self, prompt: str) -> list[int]:
        """Of a text that was said before. Tokens that steer the decoder are none of it."""
        if not prompt.strip():
            return []
        ids = self._renderer.render_text(" " + prompt.strip(), False)
        return [token for token in ids if token < self.vocabulary.end_id]

    def text_of(self, ids: list[int]) -> str:
        return self._tokenizer.decode([token for token in ids if token < self.vocabulary.end_id])

    # ------------------------------------------------------------ one window
    async def window_text(
        self, frames: np.ndarray, before: list[int], wishes: SpeechWishes, language: str | None
    ) -> _Window:
        """What is said in a window, at the first temperature at which it is a likely text."""
        temperatures = [wishes.temperature] if wishes.temperature else TEMPERATURES
        tensor = MediaTensor("float32", tuple(frames.shape), frames.tobytes())
        for temperature in temperatures:
            window = await self._decoded(tensor, before, wishes, language, temperature)
            language = window.language
            if window.is_good:
                break
        return window

    async def _decoded(
        self, frames: MediaTensor, before: list[int], wishes: SpeechWishes, language: str | None, temperature: float
    ) -> _Window:
        request = self._request(frames, before, wishes, language, temperature)
        stream = self._engine.generate(request)
        try:
            final = await fold(stream)
        finally:
            await stream.aclose()
        return self._read(request, final.outputs[0], language)

    def _request(
        self, frames: MediaTensor, before: list[int], wishes: SpeechWishes, language: str | None, temperature: float
    ) -> GenerateRequest:
        vocabulary, half = self.vocabulary, self._info.max_model_len // 2
        first: tuple[tuple[int, ...], ...] = ()
        if vocabulary.languages:
            codes = vocabulary.languages
            told = tuple(codes.values()) if language is None else (codes[language],)
            first = (told, (vocabulary.translate_id if wishes.task == "translate" else vocabulary.transcribe_id,))
        prompt = [vocabulary.start_id]
        if tail := before[-(half - 1) :]:
            prompt = [vocabulary.previous_id, *tail, vocabulary.start_id]
        rules = SpeechRules(
            first=first,
            forbidden_ids=vocabulary.forbidden_ids,
            forbidden_start_ids=vocabulary.forbidden_start_ids,
            end_id=vocabulary.end_id,
            first_time=vocabulary.first_time,
            no_speech_id=vocabulary.no_speech_id,
        )
        params = SamplingParams(
            temperature=temperature,
            seed=wishes.seed,
            max_tokens=min(half + len(first), self._info.max_model_len - len(prompt)),
            stop_token_ids=(vocabulary.end_id,),
            logprobs=0,
            speech=rules,
        )
        return GenerateRequest(
            external_id=wishes.request_id,
            turn_id=wishes.request_id,
            prompt_token_ids=prompt,
            encoder_token_ids=[0] * (frames.shape[0] // 2),
            encoder_frames=frames,
            params=params,
            priority=wishes.priority,
            arrival_time=time.monotonic(),
            is_whole=True,
            trace_headers=wishes.trace_headers,
        )

    def _read(self, request: GenerateRequest, output: Completion, language: str | None) -> _Window:
        vocabulary = self.vocabulary
        ids, entries = output.token_ids, output.logprobs or []
        scores = [entry.logprob for entry in entries]
        silence = entries[0].top_logprobs[0] if entries else -100.0
        num_first = 0
        if vocabulary.languages:
            num_first = 2
            by_id = {token: code for code, token in vocabulary.languages.items()}
            language = language or by_id.get(ids[0] if ids else -1)
        own = ids[num_first:]
        if own and own[-1] == vocabulary.end_id:
            own = own[:-1]
        told = scores[num_first:]
        mean = sum(told) / len(told) if told else 0.0
        known = [*request.prompt_token_ids, *ids[: num_first + len(own)]]
        text, temperature = self.text_of(own).strip(), request.params.temperature
        return _Window(request, known, own, text, temperature, mean, exp(min(silence, 0.0)), language)

    # ------------------------------------------------------------ when it was said
    async def timed_tokens(self, window: _Window, num_frames: int, start: float) -> list[TimedToken]:
        """Of all tokens of a window, whose sound begins at `start`, in seconds."""
        first = len(window.known_ids) - len(window.token_ids)
        num_rows = max(num_frames // 2, 1)
        ids = window.known_ids[: self._info.max_model_len - 1]
        if first >= len(ids):
            return []
        alignment = SpeechAlignment(
            heads=self.vocabulary.alignment_heads,
            first_token=first,
            num_rows=num_rows,
            smoothing=self.vocabulary.smoothing,
        )
        params = SamplingParams(temperature=0.0, max_tokens=1, alignment=alignment)
        stream = self._engine.generate(replace(window.request, prompt_token_ids=ids, params=params))
        data: bytes | None = None
        async with aclosing(stream):
            async for delta in stream:
                data = data if delta.pooled is None else delta.pooled
        assert data is not None, "the engine ended a request without its alignment"
        moments = await self.sounds.in_thread(_moments, data, num_rows)
        # A token ends where the path comes to its row, which is where the next one is looked for.
        moments += moments[-1:] * (len(window.token_ids) - len(moments))
        times = [start + TIME_STEP * moment for moment in (0, *moments)]
        return [TimedToken(*each) for each in zip(window.token_ids, times, times[1:], strict=False)]

    def words(self, tokens: list[TimedToken], language: str | None) -> list[Word]:
        text = [token for token in tokens if token.token_id < self.vocabulary.end_id]
        return words_of(text, lambda token: self._tokenizer.token_bytes(token) or b"", language)


def _moments(data: bytes, num_rows: int) -> list[int]:
    import numpy as np

    looks = np.frombuffer(data, "<f4").reshape(-1, num_rows)
    found: list[int] = first_moments(looks).tolist()
    return found
