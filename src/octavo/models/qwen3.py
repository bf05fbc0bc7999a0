"""Qwen3, dense: Qwen2 with a norm on each head of q and k in place of the biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.models.config_reader import ConfigReader, base_spec
from octavo.models.qwen2 import layer_windows
from octavo.models.spec import ArchSpec


def spec(config: dict[str, Any]) -> ArchSpec:
    reader = ConfigReader({"head_dim": 128, **config})
    base = base_spec(reader)
    bias = reader.flag("attention_bias", False)
    return replace(
        base,
        attention_bias=bias,
        o_bias=bias,
        qk_norm=True,
        layer_windows=layer_windows(reader, base.num_layers),
    )
