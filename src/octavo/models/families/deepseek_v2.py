"""DeepSeek-V2, and Lite: latent attention, and behind the first layers a mixture of experts with shared ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.blocks import Block, GatedMLP, LatentAttention, MixtureOfExperts, Sequential, SideBySide
from octavo.models.common import MAX_EXPERTS, Common, read_common, read_latent
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.layout import Layout, Split
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
HF: Final = Layout(interleaved=True, splits=(LATENT_HF,))
GGUF: Final = Layout(
    interleaved=True,
    splits=(*LATENT_GGUF, Split(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.weight", (r"\1.#.weight",), "stack")),
)


def spec(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("norm_topk_prob", (False,))  # implementations disagree on what it would do
    config.refuse_unless("scoring_func", ("softmax",))
    config.refuse_unless("topk_method", ("greedy", "group_limited_greedy"))
    routing = Routing(renormalize=False, factor=config.number("routed_scaling_factor", 1.0))
    if config.get("topk_method") == "group_limited_greedy":
        num_groups, top_groups = read_groups(config)
        routing = replace(routing, num_groups=num_groups, top_groups=top_groups)
    return latent_decoder(config, routing)


def read_groups(config: ConfigReader) -> tuple[int, int]:
    """How many groups the experts are in, and of how many of them a row may have its."""
    num_experts = config.integer("n_routed_experts", high=MAX_EXPERTS)
    num_groups = config.integer("n_group", 1, num_experts)
    if num_experts % num_groups:
        raise config.fail("n_group", f"does not divide the {num_experts} experts")
    top_groups = config.integer("topk_group", num_groups, num_groups)
    if top_groups * (num_experts // num_groups) < config.integer("num_experts_per_tok"):
        raise config.fail("topk_group", "leaves fewer experts than a row goes to")
    return num_groups, top_groups


def latent_decoder(config: ConfigReader, routing: Routing, *, has_choice_bias: bool = False) -> ModelSpec:
    """Latent attention; the MLP of the first layers dense, that of the others experts and shared ones."""
    # The heads of the rotation; those of queries, keys and values have sizes of their own.
    heads = {"head_dim": config.get("qk_rope_head_dim"), "num_key_value_heads": None}
    common = read_common(config.without(*heads, "num_experts", "num_local_experts").merged(heads))
    config.refuse_unless("mlp_bias", (False,))
    config.refuse_unless("moe_layer_freq", (1,))
    num_dense = config.integer("first_k_dense_replace", 0, MAX_LAYERS, low=0)
    attention = LatentAttention(**read_latent(config, common))
    dense = GatedMLP(size=common.intermediate_size, activation=common.activation)
    experts = _experts(config, common, routing, has_choice_bias) if num_dense < common.num_layers else dense
    return common.decoder(
        Sequential(norm=common.norm, attention=attention, mlp=dense if number < num_dense else experts)
        for number in range(common.num_layers)
    )


def _experts(config: ConfigReader, common: Common, routing: Routing, has_choice_bias: bool) -> Block:
    num_experts, size = config.integer("n_routed_experts", high=MAX_EXPERTS), config.integer("moe_intermediate_size")
    routed = MixtureOfExperts(
        num_experts=num_experts, top_k=config.integer("num_experts_per_tok", high=num_experts), size=size,
        activation=common.activation, routing=routing, has_choice_bias=has_choice_bias,
    )  # fmt: skip
    num_shared = config.integer("n_shared_experts", 0, MAX_EXPERTS, low=0)
    if not num_shared:
        return routed
    shared = GatedMLP(size=num_shared * size, activation=common.activation, name="mlp.shared_experts", gguf="shexp")
    return SideBySide(blocks=(routed, shared))
