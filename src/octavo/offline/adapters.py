"""Adapters as programs name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from octavo.base.errors import InvalidRequest
from octavo.served.model import ServedModel

_LORA, _PROMPT = "lora_request", "prompt_adapter_request"


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter that prompts run with. `lora_path`: a directory, a .gguf file or a hub id; it is loaded when it is
    first named. Names are the program's; `lora_int_id` is vLLM's, of no use here."""

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


@dataclass(frozen=True, slots=True)
class PromptAdapterRequest:
    """A prompt adapter, as `LoRARequest`. `prompt_adapter_num_virtual_tokens`: 0, or what its files say."""

    prompt_adapter_name: str
    prompt_adapter_id: int = 0
    prompt_adapter_local_path: str = ""
    prompt_adapter_num_virtual_tokens: int = 0


#: One for all prompts, or for each one or None.
LoRARequests: TypeAlias = LoRARequest | Sequence[LoRARequest | None] | None
PromptAdapterRequests: TypeAlias = PromptAdapterRequest | Sequence[PromptAdapterRequest | None] | None

T = TypeVar("T")


async def with_adapters(
    model: ServedModel, loras: LoRARequests, prompts: PromptAdapterRequests, count: int
) -> list[ServedModel]:
    """The model of each of `count` prompts. Raises `InvalidRequest` for an adapter that cannot be used."""
    pairs = zip(_each(loras, count, _LORA), _each(prompts, count, _PROMPT), strict=True)
    return [await _with_adapter(model, *pair) for pair in pairs]


def _each(given: T | Sequence[T | None] | None, count: int, name: str) -> Sequence[T | None]:
    requests: Sequence[T | None] = list(given) if isinstance(given, Sequence) else [given] * count
    if len(requests) != count:
        raise InvalidRequest(f"`{name}` has {len(requests)} entries for {count} prompts.", name)
    return requests


async def _with_adapter(
    model: ServedModel, lora: LoRARequest | None, prompt: PromptAdapterRequest | None
) -> ServedModel:
    if lora is not None and prompt is not None:
        raise InvalidRequest("A prompt runs with one adapter: `lora_request` or `prompt_adapter_request`.", _PROMPT)
    if lora is not None:
        if not model.info.max_loras:
            raise InvalidRequest("`lora_request` needs `LLM(..., enable_lora=True)`.", _LORA)
        return await _loaded(model, lora.lora_name, lora.lora_path, _LORA, is_prompt=False)
    if prompt is None:
        return model
    if not model.info.max_prompt_adapters:
        raise InvalidRequest("`prompt_adapter_request` needs `LLM(..., enable_prompt_adapter=True)`.", _PROMPT)
    path = prompt.prompt_adapter_local_path
    found = await _loaded(model, prompt.prompt_adapter_name, path, _PROMPT, is_prompt=True)
    given = prompt.prompt_adapter_num_virtual_tokens
    if given not in (0, found.num_virtual_tokens):
        raise InvalidRequest(
            f"`prompt_adapter_num_virtual_tokens` is {given}, and {path} has {found.num_virtual_tokens}.", _PROMPT
        )
    return found


async def _loaded(model: ServedModel, name: str, path: str, param: str, *, is_prompt: bool) -> ServedModel:
    assert model.adapters is not None, "the engine takes some"
    try:
        found = model.with_adapter(await model.adapters.of_path(name, path, is_prompt=is_prompt))
        await found.adapter_ready()
    except InvalidRequest as exc:
        raise InvalidRequest(exc.message, param) from None
    return found
