"""Adapters as programs name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from octavo.base.errors import InvalidRequest
from octavo.served.model import ServedModel


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter that prompts run with. `lora_path`: a directory, a .gguf file or a hub id; it is loaded when it is
    first named. Names are the program's; `lora_int_id` is vLLM's, of no use here."""

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


#: One for all prompts, or for each one or None.
LoRARequests: TypeAlias = LoRARequest | Sequence[LoRARequest | None] | None


async def with_adapters(model: ServedModel, given: LoRARequests, count: int) -> list[ServedModel]:
    """The model of each of `count` prompts. Raises `InvalidRequest` for an adapter that cannot be used."""
    requests: Sequence[LoRARequest | None]
    if given is None or isinstance(given, LoRARequest):
        requests = [given] * count
    else:
        requests = list(given)
    if len(requests) != count:
        raise InvalidRequest(f"`lora_request` has {len(requests)} entries for {count} prompts.", "lora_request")
    return [model if request is None else await _with_adapter(model, request) for request in requests]


async def _with_adapter(model: ServedModel, request: LoRARequest) -> ServedModel:
    if model.adapters is None:
        raise InvalidRequest("`lora_request` needs `LLM(..., enable_lora=True)`.", "lora_request")
    try:
        return model.with_adapter(await model.adapters.of_path(request.lora_name, request.lora_path))
    except InvalidRequest as exc:
        raise InvalidRequest(exc.message, "lora_request") from None
