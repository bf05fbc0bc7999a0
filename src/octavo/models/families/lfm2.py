"""LFM2: short convolutions in most layers, attention with norms of q and k in the others; with or without experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import Common, read_common, read_experts
from octavo.models.config_reader import MAX_LAYERS, MAX_TAPS, ConfigReader
from octavo.models.layout import GGUF_EXPERTS, STACKED_EXPERTS, Layout
from octavo.models.spec import ModelSpec
from octavo.models.state_blocks import ShortConvolution
from octavo.ops.routing import Routing

HF: Final = Layout(
    renames=(
        (r"\.operator_norm\.", ".input_layernorm."), (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."), (r"\.([qk])_layernorm\.", r".\1_norm."),
        (r"\.feed_forward\.", ".mlp."), (r"(\.mlp\..*)w1\.", r"\1gate_proj."), (r"(\.mlp\..*)w2\.", r"\1down_proj."),
        (r"(\.mlp\..*)w3\.", r"\1up_proj."), (r"\.expert_bias$", ".gate.e_score_correction.bias"),
        (r"^model\.embedding_norm\.", "model.norm."),
    ),
    splits=STACKED_EXPERTS,
    transposed=r".*\.conv\.conv\.weight",
)  # fmt: skip
GGUF: Final = Layout(
    renames=((r"^token_embd_norm\.", "output_norm."),),
    splits=(GGUF_EXPERTS,),
    transposed=r"blk\.\d+\.shortconv\.conv\.weight",
)


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(rms_norm_eps="norm_eps", intermediate_size="block_ff_dim")
    common = _common(config)
    mlp = GatedMLP(size=_mlp_size(config, common.intermediate_size), activation=common.activation)
    return _decoder(config, common, [mlp] * common.num_layers)


def moe_spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(rms_norm_eps="norm_eps")
    common = _common(config, has_experts=True)
    routing = Routing(
        kind="sigmoid", renormalize=config.flag("norm_topk_prob", True),
        factor=config.number("routed_scaling_factor", 1.0),
    )  # fmt: skip
    experts = read_experts(config, common, routing=routing, has_choice_bias=config.flag("use_expert_bias", True))
    num_dense = min(config.integer("num_dense_layers", 2, MAX_LAYERS, low=0), common.num_layers)
    dense = GatedMLP(size=common.intermediate_size, activation=common.activation)
    return _decoder(config, common, [dense] * num_dense + [experts] * (common.num_layers - num_dense))


def _common(config: ConfigReader, has_experts: bool = False) -> Common:
    defaults = {"hidden_act": "silu", "tie_word_embeddings": config.flag("tie_embedding", True)}
    return read_common(config.with_defaults(defaults), has_experts=has_experts)


def _decoder(config: ConfigReader, common: Common, mlps: Sequence[Block]) -> ModelSpec:
    taps = config.integer("conv_L_cache", 3, MAX_TAPS, low=2)
    mixers: dict[str, Block] = {
        "conv": ShortConvolution(taps=taps, bias=config.flag("conv_bias", False)),
        "full_attention": Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, qk_norm=common.norm
        ),
    }
    kinds = config.layer_kinds(common.num_layers, mixers)
    return common.decoder(
        Sequential(norm=common.norm, attention=mixers[kind], mlp=mlp) for kind, mlp in zip(kinds, mlps, strict=True)
    )


def _mlp_size(config: ConfigReader, size: int) -> int:
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    size, multiple = 2 * size // 3, config.integer("block_multiple_of", 256)
    if config.get("block_ffn_dim_multiplier") is None:
        return size
    size = int(config.number("block_ffn_dim_multiplier") * size)
    return -(-size // multiple) * multiple
