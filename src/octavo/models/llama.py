"""Llama 1 to 3.x, and what took its shape (SmolLM, Yi, many more)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.models.config_reader import ConfigReader, base_spec
from octavo.models.spec import ArchSpec


def spec(config: dict[str, Any]) -> ArchSpec:
    reader = ConfigReader(config)
    bias = reader.flag("attention_bias", False)
    return replace(base_spec(reader), attention_bias=bias, o_bias=bias, mlp_bias=reader.flag("mlp_bias", False))
