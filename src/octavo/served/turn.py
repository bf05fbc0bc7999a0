"""What a caller wants of a model, whichever API it speaks. Made by a decoder, read by `ServedModel.prepare`.

Plain data: a decoder has checked the shapes of what it puts here, and nothing that depends on the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.base.params import BeamParams, GrammarSpec, SamplingParams
from octavo.media.part import MediaPart

ChoiceMode = Literal["none", "auto", "required", "named"]


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """How a request wants its media read and prepared, over the server's settings."""

    processor: Mapping[str, Any] | None = None  # mm_processor_kwargs
    io: Mapping[str, Any] | None = None  # media_io_kwargs


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages, as a chat template sees them, and what the template is told beside them.

    The parts of a message may be media: `GivenMedia`, or as a caller of the chat API spells them.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None  # a template, or the name of one of the tokenizer's
    chat_template_kwargs: Mapping[str, Any] | None = None
    add_special_tokens: bool = False
    simplify: bool = False  # where the template refuses the messages, say the same in simpler ones
    media_options: MediaOptions = MediaOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A text or token ids to be gone on with. `suffix`: what is written stands between the two. `media`: in the order
    in which the prompt has the model's placeholders for them.

    Of a model with an encoder `prompt` is the encoder's input, and `decoder_prompt` what the reply goes on with.
    """

    prompt: str | list[int]
    add_special_tokens: bool = True
    suffix: str | None = None
    decoder_prompt: str | list[int] | None = None
    media: Sequence[MediaPart] = ()
    media_options: MediaOptions = MediaOptions()


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`names`: the only functions that may be called, one if the mode is "named"; None: all."""

    mode: ChoiceMode
    names: tuple[str, ...] | None = None

    @property
    def forces_calls(self) -> bool:
        """The output is calls, and has no text."""
        return self.mode in ("required", "named")


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call. `parameters` is a JSON schema; None: it takes none."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyWishes:
    """How the text of a reply is to be told apart. A turn without it has content only."""

    functions: Sequence[Function] = ()
    choice: ToolChoice | None = None  # None: "auto"
    parallel_calls: bool = True
    thinking_budget: int | None = None  # tokens
    include_reasoning: bool = True
    call_prefix: str = "chatcmpl-tool-"  # of the ids of calls to which the model gives none
    may_call: bool = False  # the API lets the model decide wherever there are tools, whatever the server's flag says


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request of a caller: one prompt or several, and what is wanted behind each.

    `sampling`: fields of `SamplingParams`, over the model's defaults, or the whole of it, which then has none.
    `names`: what this API calls a field of ours, for errors that name it; a `*` stands for a number in both.
    """

    request_id: str
    prompts: Sequence[Conversation | Continuation]
    sampling: Mapping[str, Any] | SamplingParams
    prompt_param: str = "prompt"  # the field that holds the prompt; several have a number behind it
    default_max_tokens: int | None = None  # where the caller does not bound the reply; None: the model's default
    bad_words: Sequence[str] = ()
    beams: BeamParams | None = None
    constraint: GrammarSpec | None = None
    wishes: ReplyWishes | None = None
    truncate: int | None = None  # tokens of the prompt to keep; -1: as many as leave room for the reply
    truncate_right: bool = False  # which end is cut off
    priority: int = 0
    cache_salt: str = ""
    is_whole: bool = False  # the caller has no use for a part of the reply
    trace_headers: tuple[tuple[str, str], ...] = ()  # of the trace that the caller counts it to
    names: Mapping[str, str] = field(default_factory=dict)
