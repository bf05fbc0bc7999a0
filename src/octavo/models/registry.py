"""Which function reads the configuration of which architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from octavo.errors import CheckpointError
from octavo.models import gemma2, gemma3, llama, mistral, qwen2, qwen3
from octavo.models.spec import ArchSpec

logger = logging.getLogger("octavo.models")

_FAMILIES: Final[dict[str, Callable[[dict[str, Any]], ArchSpec]]] = {
    "LlamaForCausalLM": llama.spec,
    "MistralForCausalLM": mistral.spec,
    "Qwen2ForCausalLM": qwen2.spec,
    "Qwen3ForCausalLM": qwen3.spec,
    "Gemma2ForCausalLM": gemma2.spec,
    "Gemma3ForCausalLM": gemma3.spec,
}
#: For configurations that name no architecture.
_MODEL_TYPES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def arch_spec(config: dict[str, Any], source: str) -> ArchSpec:
    """The architecture that a configuration in Hugging Face's form describes; `source` names it in messages.

    Raises CheckpointError for an architecture or an option that is not implemented. Code that the configuration
    points to is never run.
    """
    if config.get("auto_map") is not None:
        logger.warning("%s: auto_map is ignored: octavo runs no code from a model's files", source)
    names = config.get("architectures") or [_MODEL_TYPES.get(str(config.get("model_type")), config.get("model_type"))]
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in _FAMILIES:
        supported = ", ".join(_FAMILIES)
        raise CheckpointError(f"{source}: the architecture {str(name)[:80]!r} is not supported; these are: {supported}")
    try:
        return _FAMILIES[name](config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error.message}") from None
