"""From a body of Ollama's to a conversation, and to what is sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from octavo.base.errors import InvalidRequest, clip
from octavo.media.part import GivenMedia, MediaPart, checked_url
from octavo.served.messages import tool_call
from octavo.served.model import ServedModel
from octavo.served.turn import Continuation, Conversation
from octavo.server.ollama.protocol import (
    OPTION_REFUSALS,
    OllamaChatRequest,
    OllamaFields,
    OllamaGenerateRequest,
    OllamaMessage,
    Options,
)
from octavo.server.openai.protocol.conversation import THINKING_VARIABLES
from octavo.server.openai.protocol.samplers import SamplerFields

#: Option -> the name in `SamplingParams`.
_SAMPLING: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
#: What this API calls our fields.
NAMES: Final = {
    **{ours: f"options.{theirs}" for theirs, ours in _SAMPLING.items()},
    **{name: f"options.{name}" for name in ("stop", *SamplerFields.model_fields)},
}


def chat_of(request: OllamaChatRequest) -> Conversation:
    waiting: list[tuple[str, str]] = []  # (function, id) of the calls that have no result yet
    messages = [_shown(message, f"messages.{i}.images", waiting) for i, message in enumerate(request.messages or ())]
    # As in Ollama: a last message of the assistant is the beginning of the reply.
    continues = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    return Conversation(
        messages=messages,
        tools=[tool.for_template() for tool in request.tools or ()] or None,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        chat_template_kwargs=template_kwargs(request.think),
        simplify=True,
    )


def prompt_of(request: OllamaGenerateRequest) -> Conversation | Continuation:
    """A text to be gone on with where it is `raw` or has a `suffix`, else what a user says."""
    prompt = request.prompt or ""
    if request.raw or request.suffix:
        for name in ("system", "think", "images"):
            if getattr(request, name):
                raise InvalidRequest(f"`{name}` needs a chat template, which `raw` and `suffix` go without.", name)
        return Continuation(prompt=prompt, suffix=request.suffix or None)
    system = [{"role": "system", "content": request.system}] if request.system else []
    return Conversation(
        messages=[*system, {"role": "user", "content": _content(prompt, request.images, "images")}],
        chat_template_kwargs=template_kwargs(request.think),
        simplify=True,
    )


def _shown(message: OllamaMessage, path: str, waiting: list[tuple[str, str]]) -> dict[str, Any]:
    """The message as templates know messages. Calls have ids in few versions of this API, and templates want some:
    nine characters, which suits them all."""
    shown: dict[str, Any] = {"role": message.role, "content": _content(message.content or "", message.images, path)}
    if message.thinking:
        shown["reasoning_content"] = message.thinking
    if message.tool_calls:
        calls = []
        for call in message.tool_calls:
            call_id = call.id or f"call{len(waiting):05d}"
            waiting.append((call.function.name, call_id))
            calls.append(tool_call(call_id, call.function.name, call.function.arguments))
        shown["tool_calls"] = calls
    if message.role == "tool":
        answered = zip(("name", "tool_call_id"), _answered(message, waiting), strict=True)
        shown |= {key: value for key, value in answered if value}
    return shown


def _content(text: str, images: Sequence[str] | None, path: str) -> str | list[Any]:
    """Images come before the text."""
    if not images:
        return text
    refusal = "This model takes text only; pictures cannot be read."

    def given(image: str, place: str) -> GivenMedia:
        return GivenMedia(path, refusal, lambda: _image(image, place))

    shown: list[Any] = [given(image, f"{path}.{i}") for i, image in enumerate(images)]
    return [*shown, {"type": "text", "text": text}] if text else shown


def _image(image: str, place: str) -> MediaPart:
    if image[:5].lower() == "data:":
        return MediaPart(kind="image", param=place, place=place, url=checked_url(image, "image", place))
    return MediaPart(kind="image", param=place, place=place, data=image)


def _answered(message: OllamaMessage, waiting: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """The function and the id of the call whose result this is: the first without one that fits."""
    for i, (name, call_id) in enumerate(waiting):
        if call_id and message.tool_call_id in (None, call_id) and message.tool_name in (None, name):
            waiting[i] = ("", "")  # its number stays taken
            return name, call_id
    return message.tool_name, message.tool_call_id


def template_kwargs(think: bool | str | None) -> dict[str, Any] | None:
    if think is None:
        return None
    kwargs: dict[str, Any] = dict.fromkeys(THINKING_VARIABLES, bool(think))
    return kwargs if isinstance(think, bool) else kwargs | {"reasoning_effort": think}


def check_think(request: OllamaFields, model: ServedModel) -> None:
    if request.think and model.output.reasoning_format is None:
        raise InvalidRequest(
            f"`{clip(request.model, 200)}` does not support `think` here: the server needs --reasoning-parser.", "think"
        )


def sampling_of(options: Options, model: ServedModel) -> dict[str, Any]:
    """Values for `SamplingParams`. Raises `InvalidRequest` for options that cannot be heeded."""
    for name, harmless in OPTION_REFUSALS.items():
        value = (options.model_extra or {}).get(name)
        if not harmless(value):
            raise InvalidRequest(f"`options.{name}` is not currently supported.", f"options.{name}")
    most = model.info.max_model_len
    if options.num_ctx is not None and options.num_ctx > most:
        raise InvalidRequest(
            f"The context has {most} tokens (--max-model-len), fewer than `options.num_ctx` asks for.",
            "options.num_ctx",
        )
    given = {ours: getattr(options, theirs) for theirs, ours in _SAMPLING.items()}
    stop: Sequence[str] = [options.stop] if isinstance(options.stop, str) else options.stop or ()
    given |= {"stop": tuple(stop), **options.sampler_values()}
    return {name: value for name, value in given.items() if value is not None}


def max_tokens_of(options: Options) -> int | None:
    """A bound and not a demand; -1 and -2 are as many as fit the context."""
    wanted = options.num_predict
    if wanted is None or wanted in (-1, -2):
        return None
    if wanted < 1:
        raise InvalidRequest("`options.num_predict` must be at least 1, or -1 for no bound.", "options.num_predict")
    return wanted


def unheard(request: OllamaFields) -> list[str]:
    """Fields without effect, to be named in the reply's header: how Ollama loads a model, and when it unloads it."""
    extra = (request.options.model_extra or {}) if request.options is not None else {}
    found = [
        f"options.{name}" for name, value in sorted(extra.items()) if name not in OPTION_REFUSALS and value is not None
    ]
    return [*found, *(["keep_alive"] if _ends(request.keep_alive) else [])]


def _ends(keep_alive: float | str | None) -> bool:
    """Asks for the model to be unloaded some time; a negative duration means never, as it is here."""
    if isinstance(keep_alive, str):
        return not keep_alive.startswith("-")
    return keep_alive is not None and keep_alive >= 0
