"""Phi 1, 1.5 and 2: attention and MLP side by side behind one layer norm, biases everywhere, heads rotated in part."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Parallel
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "max_position_embeddings": 2048,
}  # fmt: skip
HF: Final = Layout(
    renames=(
        (r"\.self_attn\.dense\.", ".self_attn.o_proj."), (r"\.([qk])_layernorm\.", r".\1_norm."),
        (r"\.fc1\.", ".up_proj."), (r"\.fc2\.", ".down_proj."), (r"\.final_layernorm\.", ".norm."),
    ),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(rms_norm_eps="layer_norm_eps").with_defaults(_DEFAULTS)
    # The output matrix has a bias, which the table of the tokens has not.
    config.refuse_unless("tie_word_embeddings", (False,))
    common = read_common(config, rotates_in_part=True).with_norm(kind="layer", bias=True)
    layer = Parallel(
        norm=common.norm,
        shares_norm=True,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=True, o_bias=True,
            qk_norm=common.norm if config.flag("qk_layernorm", False) else None,
        ),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=True),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers, lm_head_bias=True)
