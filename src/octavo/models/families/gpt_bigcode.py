"""StarCoder 1 and SantaCoder: GPT-2 with matrices as [out, in], and one head of keys and values for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.config_reader import ConfigReader
from octavo.models.families import gpt2
from octavo.models.layout import QKV_BY_HEAD
from octavo.models.spec import ModelSpec

HF: Final = replace(
    gpt2.HF,
    transposed="",
    splits=(QKV_BY_HEAD,),
)


def spec(config: ConfigReader) -> ModelSpec:
    heads = {"num_key_value_heads": 1} if config.flag("multi_query", True) else {}
    return gpt2.spec(config.without("num_key_value_heads").with_defaults(heads))
