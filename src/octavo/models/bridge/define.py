"""A model by way of transformers, before its weights are there."""

from __future__ import annotations

from typing import Any

import torch

from octavo.base.config import ModelConfig
from octavo.models.bridge.declare import BridgedDefinition, declared
from octavo.models.bridge.refusal import Refusal, refused
from octavo.models.bridge.skeleton import max_positions, skeleton


def bridged(config: ModelConfig, values: dict[str, Any], source: str, dtype: torch.dtype) -> BridgedDefinition:
    """`values`: the configuration in Hugging Face's form; `dtype`: of activations. Raises CheckpointError for a model
    that cannot be served, with the reason."""
    made = skeleton(values, source, dtype, trust_remote_code=config.trust_remote_code)
    try:
        return declared(made, max_positions(made.config, config.max_model_len, source))
    except Refusal as error:
        raise refused(source, made.model_type, error) from None
