"""Whose implementation of a model is run: octavo's family, or transformers' modules."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.base.suggest import nearest
from octavo.models.registry import FAMILIES, find_family

logger = logging.getLogger("octavo.models")

_EXTRA = "pip install 'octavo[transformers]'"


def implementation(config: ModelConfig, values: dict[str, Any], source: str) -> Literal["octavo", "transformers"]:
    """`values`: a configuration in Hugging Face's form; `source` names it in messages.

    Raises CheckpointError for an architecture that nobody has whom `config` allows, with what to do.
    """
    name, asked = (values.get("architectures") or [values.get("model_type")])[0], config.model_impl
    has_family = _has_family(values, source)
    if asked in ("octavo", "vllm") or (asked == "auto" and has_family):
        if has_family:
            return "octavo"
        raise _unknown(source, name, "--model-impl transformers runs what transformers has.")
    if source.endswith(".gguf"):
        if asked == "auto":
            raise _unknown(source, name, "Of other models octavo needs the safetensors files.")
        raise CheckpointError(f"{source}: --model-impl transformers reads safetensors files; leave it out for .gguf")
    if importlib.util.find_spec("transformers") is None:
        if asked == "transformers":
            raise CheckpointError(f"--model-impl transformers needs transformers, which is not installed: {_EXTRA}")
        raise _unknown(source, name, f"Many more run with transformers, which is not installed: {_EXTRA}")
    if asked == "auto":
        logger.info("%s: octavo has no family %s of its own: transformers' modules run", source, name)
    return "transformers"


def _has_family(values: dict[str, Any], source: str) -> bool:
    try:
        find_family(values, source)
    except CheckpointError:
        return False
    return True


def _unknown(source: str, name: Any, advice: str) -> CheckpointError:
    hint = nearest(name, FAMILIES) if isinstance(name, str) else ""
    return CheckpointError(f"{source}: octavo has no family {str(name)[:80]!r}{hint}. {advice}")
