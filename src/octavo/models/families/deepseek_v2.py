"""DeepSeek-V2, and Lite: latent attention, and behind the first layers a mixture of experts with shared ones."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Block, GatedMLP, LatentAttention, MixtureOfExperts, Sequential, SideBySide
from octavo.models.common import MAX_EXPERTS, Common, read_common
from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, ConfigReader, flat_rope, yarn_mscale
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec, NormSpec
from octavo.ops.program import Latent

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
#: Of the norms of latents, whatever that of the others is.
_LATENT_EPS: Final = 1e-6


def spec(config: ConfigReader) -> ModelSpec:
    common = read_latent_common(config)
    attention = latent_attention(config, common)
    config.refuse_unless("mlp_bias", (False,))
    config.refuse_unless("moe_layer_freq", (1,))
    num_dense = config.integer("first_k_dense_replace", 0, MAX_LAYERS, low=0)

    def layer(number: int) -> Sequential:
        mlp: Block = GatedMLP(size=common.intermediate_size, activation=common.activation)
        return Sequential(
            norm=common.norm, attention=attention, mlp=mlp if number < num_dense else _experts(config, common)
        )

    return common.decoder([layer(number) for number in range(common.num_layers)])


def _experts(config: ConfigReader, common: Common) -> Block:
    num_experts = config.integer("n_routed_experts", high=MAX_EXPERTS)
    size = config.integer("moe_intermediate_size")
    routed = MixtureOfExperts(
        num_experts=num_experts, top_k=config.integer("num_experts_per_tok", high=num_experts), size=size,
        activation=common.activation, renormalize=config.flag("norm_topk_prob", False),
    )  # fmt: skip
    num_shared = config.integer("n_shared_experts", 0, MAX_EXPERTS, low=0)
    if not num_shared:
        return routed
    shared = GatedMLP(size=num_shared * size, activation=common.activation, name="mlp.shared_experts", gguf="shexp")
    return SideBySide(blocks=(routed, shared))


def read_latent_common(config: ConfigReader) -> Common:
    """`read_common` of a model with latent attention, whose heads rotate parts of a size of their own."""
    rope_dim = config.integer("qk_rope_head_dim", high=MAX_HEAD_DIM)
    own = ("head_dim", "num_key_value_heads", "num_experts", "num_local_experts")
    return read_common(config.without(*own).merged({"head_dim": rope_dim}))


def latent_attention(config: ConfigReader, common: Common) -> LatentAttention:
    latent = Latent(
        num_heads=common.heads.num_heads,
        nope_dim=config.integer("qk_nope_head_dim", high=MAX_HEAD_DIM),
        rank=config.integer("kv_lora_rank"),
        rope_dim=common.heads.head_dim,
    )
    for key, size in (("kv_lora_rank", latent.rank), ("qk_rope_head_dim", latent.rope_dim)):
        if size % 16:
            raise config.fail(key, "is not a multiple of 16, which the cache of latents asks for")
    rope = common.rope
    # Only where the configuration says so do scores grow with the context that a rope was stretched to.
    stretch = yarn_mscale(rope.factor, flat_rope(config).number("mscale_all_dim", 0.0, low=-1.0))
    return LatentAttention(
        latent=latent, value_dim=config.integer("v_head_dim", high=MAX_HEAD_DIM),
        scale=(latent.nope_dim + latent.rope_dim) ** -0.5 * stretch**2, rope=rope,
        norm=NormSpec(eps=_LATENT_EPS), q_rank=0 if config.get("q_lora_rank") is None else config.integer("q_lora_rank"),
        bias=config.flag("attention_bias", False),
    )  # fmt: skip
