"""Nemotron-H: each layer is one block behind a norm: Mamba 2, attention without positions, an MLP, or experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Block, Sequential
from octavo.models.common import MAX_LATENT, Common, read_common, read_experts, read_noaux_routing
from octavo.models.config_reader import MAX_LAYERS, MAX_SIZE, ConfigReader
from octavo.models.expert_blocks import LatentExperts, WithShared
from octavo.models.layout import GGUF_EXPERTS, STACKED_EXPERTS, Layout, Split
from octavo.models.mamba import MAMBA2_GGUF, MAMBA2_HF, read_mamba2
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    ignored=(r"mtp\..*",),
    renames=(
        (r"^backbone\.", "model."), (r"^model\.embeddings\.", "model.embed_tokens."), (r"\.norm_f\.", ".norm."),
        (r"(\.layers\.\d+)\.norm\.", r"\1.input_layernorm."), (r"\.mixer\.([qkvo]_proj)\.", r".self_attn.\1."),
        (r"\.mixer\.(up_proj|down_proj|gate|experts|shared_experts)\.", r".mlp.\1."),
        (r"\.mixer\.fc1_latent_proj\.", ".mlp.latent_down."), (r"\.mixer\.fc2_latent_proj\.", ".mlp.latent_up."),
        (r"\.e_score_correction_bias$", ".e_score_correction.bias"), (r"\.mixer\.", ".mamba."), *MAMBA2_HF.renames,
    ),
    splits=(
        *MAMBA2_HF.splits, *STACKED_EXPERTS,
        Split(r"(.*\.mlp\.experts)\.up_proj", (r"\1.#.up_proj.weight",), "stack"),
    ),
)  # fmt: skip
#: Layers that guess further tokens stand behind the model's own.
GGUF: Final = replace(MAMBA2_GGUF, has_draft_layers=True, splits=(*MAMBA2_GGUF.splits, GGUF_EXPERTS))
_DEFAULTS: Final[dict[str, Any]] = {
    "mlp_hidden_act": "relu2", "rms_norm_eps": 1e-5, "mamba_n_groups": 8, "mamba_d_state": 128, "mamba_d_head": 64,
    "mamba_n_heads": 128, "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688,
}  # fmt: skip
_PATTERN: Final = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(
        layer_types="layers_block_type", rms_norm_eps="layer_norm_epsilon", mamba_n_heads="mamba_num_heads",
        mamba_n_groups="n_groups", mamba_d_state="ssm_state_size", mamba_d_head="mamba_head_dim",
        mamba_d_conv="conv_kernel", mamba_conv_bias="use_conv_bias", hidden_act="mamba_hidden_act",
        num_experts="n_routed_experts",
    ).with_defaults(_DEFAULTS)  # fmt: skip
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        config = config.with_defaults({"layer_types": [_PATTERN.get(kind, kind) for kind in pattern[:MAX_LAYERS]]})
    kinds = config.get("layer_types")
    config = config.with_defaults({"num_hidden_layers": len(kinds) if isinstance(kinds, list) else None})
    if isinstance(kinds, list) and "mlp" not in kinds:
        config = config.with_defaults({"intermediate_size": 1})  # of no layer
    common = read_common(config, activation_key="mlp_hidden_act", has_experts=True)
    for key in ("use_bias", "attention_bias"):
        config.refuse_unless(key, (False,))
    config.refuse_unless("sliding_window", ())
    width = config.integer("mamba_n_heads", high=MAX_SIZE) * config.integer("mamba_d_head", high=MAX_SIZE)
    attention = Attention(heads=common.heads, scale=common.heads.head_dim**-0.5)
    mamba = read_mamba2(config, common.norm, width)
    blocks: dict[str, Block] = {
        "mamba": mamba, "linear_attention": mamba, "attention": attention, "full_attention": attention,
        "mlp": MLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False)),
    }  # fmt: skip
    if isinstance(kinds, list) and "moe" in kinds:
        blocks["moe"] = _experts(config, common)
    return common.decoder(
        Sequential(norm=common.norm, attention=blocks[kind], mlp=None)
        for kind in config.layer_kinds(common.num_layers, blocks)
    )


def _experts(config: ConfigReader, common: Common) -> Block:
    """Experts, which may compute with latents of the rows, and an MLP for every row."""
    bias = config.flag("mlp_bias", False)
    routed = read_experts(config, common, routing=read_noaux_routing(config), has_choice_bias=True, gated=False)
    experts: Block = routed
    if config.get("moe_latent_size") is not None:
        experts = LatentExperts(experts=routed, size=config.integer("moe_latent_size", high=MAX_LATENT), bias=bias)
    shared = MLP(
        size=config.integer("moe_shared_expert_intermediate_size"), activation=common.activation, bias=bias,
        name="mlp.shared_experts", gguf_suffix="_shexp",
    )  # fmt: skip
    return WithShared(experts=experts, shared=shared)
