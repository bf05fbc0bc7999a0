"""What a served model is made of, as far as it needs each: protocols, so that a test can put fakes in their places."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from octavo.base.media import PreparedMedia
from octavo.base.params import GenerateRequest, GrammarSpec, SamplingParams
from octavo.client.generation import Detokenizer, GenerationDelta, OpenSequence
from octavo.client.sleep_mode import SleepMode
from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.grammars.tool_grammar import SpecialTokens
from octavo.wire.messages import AdapterInfo

if TYPE_CHECKING:
    import numpy as np


class DeltaStream(Protocol):
    """`client.generation.GenerationStream`: closing it aborts the request."""

    def __aiter__(self) -> AsyncIterator[GenerationDelta]: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """`client.engine_client.EngineClient`."""

    @property
    def is_healthy(self) -> bool:
        """The engine answers; also true while the server drains."""
        ...

    @property
    def is_ready(self) -> bool:
        """A new request would be taken."""
        ...

    @property
    def dead_reason(self) -> str | None: ...

    @property
    def sleep_mode(self) -> SleepMode: ...

    @property
    def num_unfinished(self) -> int:
        """Sequences, running or waiting."""
        ...

    def sequences(self) -> list[OpenSequence]:
        """The same, one by one, those first that came first."""
        ...

    def check_servable(self, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` for a request that `generate` would refuse at any time."""
        ...

    def generate(self, request: GenerateRequest) -> DeltaStream:
        """Admit a request. Raises `RequestError` or `ServerError` when it is refused."""
        ...

    def abort(self, matches: Callable[[str], bool]) -> int:
        """End the requests with these public ids; the value is their number."""
        ...

    async def reset_prefix_cache(self) -> None:
        """Forget every cached block. Raises `ServerError`."""
        ...

    async def load_adapter(self, key: str, path: str, *, is_prompt: bool = False) -> AdapterInfo:
        """Have the engine read an adapter, of weights or a prompt adapter. Raises `ServerError` with what is wrong with
        its files."""
        ...

    async def drop_adapter(self, key: str) -> None:
        """No request comes with this adapter any more."""
        ...

    async def start_profile(self, directory: str, *, with_torch: bool) -> None:
        """Record the engine's steps. Raises `ServerError`."""
        ...

    async def stop_profile(self) -> dict[str, Any]:
        """Write what was recorded, and say where and how much. Raises `ServerError`."""
        ...

    def detokenizer(self, params: SamplingParams) -> Detokenizer:
        """What makes text of the tokens of a sample with these parameters."""
        ...

    async def prepare_grammars(self) -> None:
        """To be called before a request with a grammar. Raises `InvalidRequest` where the model cannot have any."""
        ...


class Grammars(Protocol):
    """`text.grammars.checker.GrammarChecker`."""

    async def check(self, spec: GrammarSpec) -> str:
        """The canonical grammar. Raises `InvalidRequest` naming the field, or `Overloaded`."""
        ...

    async def close(self) -> None: ...


class Tokenizer(Protocol):
    """`text.tokenizers.tokenizer.Tokenizer`."""

    @property
    def has_text(self) -> bool:
        """Whether tokens have texts at all."""
        ...

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int]:
        """The ids of two texts in one, and where those of the second begin. Raises `InvalidRequest`."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes | None: ...


class Renderer(Protocol):
    """`text.templates.renderer.Renderer`: prompts in, token ids out.

    Raises `InvalidRequest`; called from threads too.
    """

    @property
    def template_names(self) -> frozenset[str]:
        """Names of the tokenizer's own templates."""
        ...

    @property
    def template_variables(self) -> frozenset[str]:
        """Names that a request can set for the templates of the server."""
        ...

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        simplify: bool = False,
        media: Mapping[str, str] | None = None,
        shown_media: Mapping[str, str] | None = None,
    ) -> str: ...

    def render_text(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def render_infill(
        self, before: str | Sequence[int], after: str, add_special_tokens: bool = True
    ) -> tuple[list[int], tuple[int, ...]] | None: ...


@runtime_checkable
class SoundProcessor(Protocol):
    """What a family makes of sounds; of one that sees too it is a `text.media.processor.MediaProcessor` beside.
    Called from threads."""

    @property
    def audio_placeholder(self) -> str:
        """What stands for a sound in the text that a chat template makes, to be replaced by `PreparedMedia.text`."""
        ...

    @property
    def audio_placeholder_id(self) -> int:
        """The token that the `PreparedMedia.text` of a sound holds once a row."""
        ...

    def audio(self, samples: np.ndarray, rate: int, options: Mapping[str, Any]) -> PreparedMedia:
        """`samples` float32 [samples] of one channel in -1..1, `rate` of them a second. Raises `InvalidRequest`."""
        ...


@runtime_checkable
class VideoProcessor(Protocol):
    """A `text.media.processor.MediaProcessor` of a family that knows of time in videos. Called from threads."""

    @property
    def video_placeholder(self) -> str:
        """What stands for a video in the text that a chat template makes, to be replaced by `PreparedMedia.text`."""
        ...

    @property
    def video_placeholder_id(self) -> int:
        """The token that the `PreparedMedia.text` of a video holds once a row; negative: there is none."""
        ...

    def video(
        self, frames: Sequence[np.ndarray], times: Sequence[float] | None, duration: float, options: Mapping[str, Any]
    ) -> PreparedMedia:
        """`frames` uint8 [height, width, 3], shown at `times` in seconds (None: not known) of `duration` seconds.
        Raises `InvalidRequest`."""
        ...


@dataclass(frozen=True)
class OutputSettings:
    """How the outputs of the model are read, decided once at start."""

    tool_format: ToolFormat | None = None  # None: the model's is not known
    reasoning_format: ReasoningFormat | None = None  # None: thoughts are not told apart
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)


class TokenTexts:
    """Tokens as (text, bytes). A token that is a part of a character has a replacement character as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}  # at most the vocabulary

    def __getitem__(self, token_id: int) -> tuple[str, list[int]]:
        pair = self._known.get(token_id)
        if pair is None:
            raw = self._tokenizer.token_bytes(token_id)
            if raw is None:
                raw = self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
            pair = self._known[token_id] = (raw.decode("utf-8", "replace"), list(raw))
        return pair
