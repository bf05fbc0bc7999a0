"""The second DeepSeek, and its Lite: latent attention, and behind the first layers experts with shared ones."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Block, GatedMLP, LatentAttention, Sequential
from octavo.models.common import Common, read_common, read_experts, read_groups, read_latent
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.families.deepseek import with_shared
from octavo.models.layout import GGUF_EXPERTS, STACKED_EXPERTS, Layout, Split
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

#: kv_b_proj holds, head by head, the matrix of its keys and that of its values.
LATENT_HF: Final = Split(
    r"(.*\.self_attn\.)kv_b_proj\.weight", (r"\1k_b_proj.#.weight", r"\1v_b_proj.#.weight"), "latent"
)
#: Newer files hold the two apart, that of the keys transposed; older ones as the other side does.
LATENT_GGUF: Final = (
    Split(r"(blk\.\d+\.attn_)kv_b\.weight", (r"\1k_b.#.weight", r"\1v_b.#.weight"), "latent"),
    Split(r"(blk\.\d+\.attn_[kv]_b)\.weight", (r"\1.#.weight",), "stack"),
)
HF: Final = Layout(interleaved=True, splits=(LATENT_HF, *STACKED_EXPERTS))
GGUF: Final = Layout(interleaved=True, splits=(*LATENT_GGUF, GGUF_EXPERTS))


def spec(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("norm_topk_prob", (False,))  # implementations disagree on what it would do
    config.refuse_unless("scoring_func", ("softmax",))
    config.refuse_unless("topk_method", ("greedy", "group_limited_greedy"))
    config = config.aliased(num_experts="n_routed_experts")
    groups = read_groups(config) if config.get("topk_method") == "group_limited_greedy" else {}
    factor = config.number("routed_scaling_factor", 1.0)
    routing = Routing(kind="softmax", renormalize=False, factor=factor, **groups)
    return latent_decoder(config, routing)


def latent_decoder(config: ConfigReader, routing: Routing, *, has_choice_bias: bool = False) -> ModelSpec:
    """Latent attention; the MLP of the first layers dense, that of the others experts and shared ones."""
    common, attention = latent_common(config)
    config.refuse_unless("moe_layer_freq", (1,))
    num_dense = config.integer("first_k_dense_replace", 0, MAX_LAYERS, low=0)
    dense = GatedMLP(size=common.intermediate_size, activation=common.activation)
    mixed: Block = dense
    if num_dense < common.num_layers:
        experts = read_experts(config, common, routing=routing, has_choice_bias=has_choice_bias)
        mixed = with_shared(config, common, experts)
    return common.decoder(
        Sequential(norm=common.norm, attention=attention, mlp=dense if number < num_dense else mixed)
        for number in range(common.num_layers)
    )


def latent_common(config: ConfigReader) -> tuple[Common, LatentAttention]:
    """The heads are those of the rotation; those of queries, keys and values have sizes of their own."""
    heads = config.replaced(head_dim=config.get("qk_rope_head_dim"), num_key_value_heads=None)
    common = read_common(heads, has_experts=True)
    config.refuse_unless("mlp_bias", (False,))
    return common, LatentAttention(**read_latent(config, common))
