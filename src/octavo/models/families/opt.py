"""OPT: learned positions, layer norms and biases, a plain MLP; the one of 350 million has its norms behind the sums,
and embeddings of half the width."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, NormedSum, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec, NormSpec

_NAMES: Final = {"intermediate_size": "ffn_dim", "hidden_act": "activation_function"}
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "relu", "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
HF: Final = Layout(
    renames=(
        (r"^(model\.)?decoder\.", "model."), (r"^model\.final_layer_norm\.", "model.norm."),
        (r"\.self_attn_layer_norm\.", ".input_layernorm."), (r"\.final_layer_norm\.", ".post_attention_layernorm."),
        (r"\.out_proj\.", ".o_proj."), (r"\.fc1\.", ".mlp.up_proj."), (r"\.fc2\.", ".mlp.down_proj."),
    ),
    # The first token is at position 2.
    skipped=((r"model\.embed_positions\.weight", 2),),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES).with_defaults(_DEFAULTS)
    common = read_common(config)
    bias, has_weight = config.flag("enable_bias", True), config.flag("layer_norm_elementwise_affine", True)
    norm = NormSpec(eps=1e-5, kind="layer", bias=has_weight, has_weight=has_weight)
    is_pre_norm = config.flag("do_layer_norm_before", True)
    layer = (Sequential if is_pre_norm else NormedSum)(
        norm=norm,
        attention=Attention(heads=common.heads, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=bias),
    )
    embedding = config.integer("word_embed_proj_dim", common.hidden_size)
    has_last_norm = is_pre_norm and not config.flag("_remove_final_layer_norm", False)
    return common.decoder(
        [layer] * common.num_layers,
        norm=norm if has_last_norm else None,
        learned_positions=True,
        embedding_size=0 if embedding == common.hidden_size else embedding,
    )
