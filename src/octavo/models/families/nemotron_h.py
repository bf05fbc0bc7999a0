"""Nemotron-H: each layer is one block behind a norm: Mamba 2, attention without positions, or an MLP."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Block, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import MAX_LAYERS, MAX_SIZE, ConfigReader
from octavo.models.families.granite_hybrid import MAMBA2_HF, hybrid_kinds, read_mamba2
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    ignored=(r"mtp\..*",),
    renames=(
        (r"^backbone\.", "model."), (r"^model\.embeddings\.", "model.embed_tokens."), (r"\.norm_f\.", ".norm."),
        (r"(\.layers\.\d+)\.norm\.", r"\1.input_layernorm."), (r"\.mixer\.([qkvo]_proj)\.", r".self_attn.\1."),
        (r"\.mixer\.(up|down)_proj\.", r".mlp.\1_proj."), (r"\.mixer\.", ".mamba."), *MAMBA2_HF.renames,
    ),
    splits=MAMBA2_HF.splits,
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "mlp_hidden_act": "relu2", "rms_norm_eps": 1e-5, "mamba_n_groups": 8, "mamba_d_state": 128, "mamba_d_head": 64,
    "mamba_n_heads": 128,
}  # fmt: skip
_PATTERN: Final = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(
        layer_types="layers_block_type", rms_norm_eps="layer_norm_epsilon", mamba_n_heads="mamba_num_heads",
        mamba_n_groups="n_groups", mamba_d_state="ssm_state_size", mamba_d_head="mamba_head_dim",
        mamba_d_conv="conv_kernel", mamba_conv_bias="use_conv_bias",
    ).with_defaults(_DEFAULTS)  # fmt: skip
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        config = config.with_defaults({"layer_types": [_PATTERN.get(kind, kind) for kind in pattern[:MAX_LAYERS]]})
    kinds = config.get("layer_types")
    config = config.with_defaults({"num_hidden_layers": len(kinds) if isinstance(kinds, list) else None})
    common = read_common(config, activation_key="mlp_hidden_act")
    for key in ("use_bias", "attention_bias"):
        config.refuse_unless(key, (False,))
    config.refuse_unless("sliding_window", ())
    config.refuse_unless("mamba_hidden_act", ("silu",))
    attention = Attention(heads=common.heads, scale=common.heads.head_dim**-0.5)
    width = config.integer("mamba_n_heads", high=MAX_SIZE) * config.integer("mamba_d_head", high=MAX_SIZE)
    mamba = read_mamba2(config, common.norm, width)
    blocks: dict[str, Block] = {
        "mamba": mamba, "linear_attention": mamba, "attention": attention, "full_attention": attention,
        "mlp": MLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False)),
    }  # fmt: skip
    return common.decoder(
        Sequential(norm=common.norm, attention=blocks[kind], mlp=None)
        for kind in hybrid_kinds(config, common.num_layers, blocks)
    )
