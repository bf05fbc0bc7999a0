"""Baichuan 1 and 2: Llama with q, k and v in one matrix; 13B has ALiBi in place of the rotation."""

from __future__ import annotations

from typing import Final

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import QKV, Layout
from octavo.models.spec import AlibiSpec, ModelSpec

#: Baichuan 2 is known by its vocabulary: its output matrix is used with rows of length 1.
_VOCAB_2: Final = 125_696
HF: Final = Layout(renames=((r"\.W_pack\.", ".qkv."),), splits=(QKV,))


def spec(config: ConfigReader) -> ModelSpec:
    # The configurations of 13B name the length that it was trained for, and no positions that a table would have.
    has_alibi = config.get("max_position_embeddings") is None
    common = read_common(config.aliased(max_position_embeddings="model_max_length"))
    if has_alibi:
        layer = llama_layer(common, rope=None, alibi=AlibiSpec(num_heads=common.heads.num_heads))
    else:
        layer = llama_layer(common)
    # `unit_lm_head` is no key of Hugging Face's: `gguf_config` sets it.
    is_unit = config.flag("unit_lm_head", common.vocab_size == _VOCAB_2)
    return common.decoder([layer] * common.num_layers, unit_lm_head=is_unit)
