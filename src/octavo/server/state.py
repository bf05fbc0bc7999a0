"""What the handlers share: one object, made at start and handed to all of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.config import LogprobsMode, ServerConfig
from octavo.errors import EngineDead, ModelNotFound, ShuttingDown
from octavo.generation import Detokenizer, GenerationDelta
from octavo.messages import EngineInfo
from octavo.metrics import Metrics
from octavo.params import GenerateRequest, GrammarSpec, SamplingParams
from octavo.server.errors import clip
from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.grammar_checker import GrammarChecker
from octavo.text.tool_grammar import SpecialTokens


class DeltaStream(Protocol):
    """`generation.GenerationStream`: closing it aborts the request."""

    def __aiter__(self) -> AsyncIterator[GenerationDelta]: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """`client.EngineClient`, as far as the server needs it."""

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

    def generate(self, request: GenerateRequest) -> DeltaStream:
        """Admit a request. Raises `RequestError` or `ServerError` when it is refused."""
        ...

    def detokenizer(self, params: SamplingParams) -> Detokenizer:
        """What makes text of the tokens of a sample with these parameters."""
        ...

    async def prepare_grammars(self) -> None:
        """To be called before a request with a grammar. Raises `InvalidRequest` where the model cannot have any."""
        ...


class Grammars(Protocol):
    """`text.grammar_checker.GrammarChecker`."""

    async def check(self, spec: GrammarSpec) -> str:
        """The canonical grammar. Raises `InvalidRequest` naming the field, or `Overloaded`."""
        ...

    async def close(self) -> None: ...


class Tokenizer(Protocol):
    """`text.tokenizer.Tokenizer`, as far as the server needs it."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes | None: ...


class Renderer(Protocol):
    """`text.renderer.Renderer`: prompts in, token ids out. Raises `InvalidRequest`; called from threads too."""

    @property
    def template_names(self) -> frozenset[str]:
        """Names of the tokenizer's own templates."""
        ...

    @property
    def template_variables(self) -> frozenset[str]:
        """Names that a request can set for the templates of the server."""
        ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_special_tokens: bool = False,
    ) -> list[int]: ...

    def render_text(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def render_infill(
        self, before: str | Sequence[int], after: str, add_special_tokens: bool = True
    ) -> tuple[list[int], tuple[int, ...]] | None: ...


@dataclass(frozen=True)
class OutputSettings:
    """How the outputs of the model are read, decided once at start."""

    tool_format: ToolFormat | None = None  # None: the model's is not known
    reasoning_format: ReasoningFormat | None = None  # None: thoughts are not told apart
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)


@dataclass(frozen=True)
class ServerState:
    """Made by launch once the engine can serve; never changed."""

    config: ServerConfig
    model_names: tuple[str, ...]  # as served; the first is reported where a request names none
    client: Engine
    tokenizer: Tokenizer
    renderer: Renderer
    info: EngineInfo
    metrics: Metrics
    model_root: str = ""  # where the model comes from, for /v1/models
    default_sampling: Mapping[str, Any] = field(default_factory=dict)  # for fields that a request leaves out
    logprobs_mode: LogprobsMode = "raw_logprobs"
    max_fanout: int = 2048  # most sequences (prompts x n) of one request
    output: OutputSettings = field(default_factory=OutputSettings)
    grammars: Grammars = field(default_factory=GrammarChecker)
    created: int = field(default_factory=lambda: int(time.time()))

    def check_available(self) -> None:
        """Raise `EngineDead` or `ShuttingDown` when no request can be served."""
        if not self.client.is_healthy:
            raise EngineDead(self.client.dead_reason or "The engine does not respond.")
        if not self.client.is_ready:
            raise ShuttingDown("The server is shutting down.")

    def resolve_model(self, name: str | None) -> str:
        """The served name for a request's `model`; none or "" is the first. Raises `ModelNotFound` (E7)."""
        if not name:
            return self.model_names[0]
        if name not in self.model_names:
            raise ModelNotFound(f"The model `{clip(name, 200)}` does not exist.", "model")
        return name
