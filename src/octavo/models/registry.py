"""Which family reads the configuration of which architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.models.config_reader import ConfigReader
from octavo.models.families import (
    bloom,
    deepseek_v2,
    deepseek_v3,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    jamba,
    lfm2,
    llama,
    mistral,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

logger = logging.getLogger("octavo.models")


@dataclass(frozen=True)
class Family:
    """`model_type`: of configurations that name no architecture."""

    model_type: str
    spec: Callable[[ConfigReader], ModelSpec]
    hf: Layout = Layout()  # of Hugging Face's checkpoints
    gguf: Layout = Layout()


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family("llama", llama.spec, gguf=Layout(interleaved=True)),
    "MistralForCausalLM": Family("mistral", mistral.spec),
    "Qwen2ForCausalLM": Family("qwen2", qwen2.spec),
    "Qwen3ForCausalLM": Family("qwen3", qwen3.spec),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", qwen3_moe.spec, gguf=qwen3_moe.GGUF),
    "GemmaForCausalLM": Family("gemma", gemma.spec),
    "Gemma2ForCausalLM": Family("gemma2", gemma2.spec),
    "Gemma3ForCausalLM": Family("gemma3_text", gemma3.spec),
    "MixtralForCausalLM": Family("mixtral", mixtral.spec, mixtral.HF, mixtral.GGUF),
    "Phi3ForCausalLM": Family("phi3", phi3.spec, phi3.HF, phi3.GGUF),
    "GPT2LMHeadModel": Family("gpt2", gpt2.spec, gpt2.HF, gpt2.GGUF),
    "GPTNeoXForCausalLM": Family("gpt_neox", gpt_neox.spec, gpt_neox.HF, gpt_neox.GGUF),
    "DeepseekV2ForCausalLM": Family("deepseek_v2", deepseek_v2.spec, deepseek_v2.HF, deepseek_v2.GGUF),
    "DeepseekV3ForCausalLM": Family("deepseek_v3", deepseek_v3.spec, deepseek_v3.HF, deepseek_v3.GGUF),
    "Glm4MoeLiteForCausalLM": Family("glm4_moe_lite", deepseek_v3.spec, deepseek_v3.HF, deepseek_v3.GGUF),
    "JambaForCausalLM": Family("jamba", jamba.spec, jamba.HF),
    "Lfm2ForCausalLM": Family("lfm2", lfm2.spec, lfm2.HF, lfm2.GGUF),
    "Lfm2MoeForCausalLM": Family("lfm2_moe", lfm2.moe_spec, lfm2.HF, lfm2.GGUF),
    "BloomForCausalLM": Family("bloom", bloom.spec, bloom.HF, bloom.GGUF),
}


def find_family(config: dict[str, Any], source: str) -> Family:
    """The family of a configuration in Hugging Face's form; `source` names it in messages.

    Raises CheckpointError for an architecture that is not implemented.
    """
    by_type = {family.model_type: name for name, family in FAMILIES.items()}
    names = config.get("architectures") or [by_type.get(str(config.get("model_type")), config.get("model_type"))]
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise CheckpointError(f"{source}: the architecture {str(name)[:80]!r} is not supported; these are: {supported}")
    return FAMILIES[name]


def model_spec(config: dict[str, Any], source: str) -> ModelSpec:
    """The model that a configuration in Hugging Face's form describes; `source` names it in messages.

    Raises CheckpointError for an architecture or an option that is not implemented. Code that the configuration
    points to is never run.
    """
    if config.get("auto_map") is not None:
        logger.warning("%s: auto_map is ignored: octavo runs no code from a model's files", source)
    family = find_family(config, source)
    try:
        return family.spec(ConfigReader(config))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error.message}") from None
