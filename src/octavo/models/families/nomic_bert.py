"""Nomic's BERT: rotated heads in place of learned positions, and a gated MLP without biases; or, in every other layer,
experts of which a token meets two, and biases everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from octavo.models.blocks import MLP, Block, GatedMLP
from octavo.models.builder import Builder
from octavo.models.common import MAX_EXPERTS, read_activation
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.expert_blocks import MixtureOfExperts
from octavo.models.families.bert import encoder_rope, normed_sums, pooler
from octavo.models.layout import GGUF_EXPERTS, GGUF_QKV, QKV, Layout, Split
from octavo.models.params import Matrix
from octavo.models.spec import ModelSpec
from octavo.ops.operands import Buffer
from octavo.ops.operations import Add, Embed
from octavo.ops.routing import Routing

HF: Final = Layout(
    ignored=(r"cls\..*",),
    renames=(
        (r"^(bert|nomic_bert)\.", ""), (r"^embeddings\.word_embeddings\.", "model.embed_tokens."),
        (r"^embeddings\.token_type_embeddings\.", "model.token_types."), (r"^emb_ln\.", "model.embed_norm."),
        (r"^embeddings\.LayerNorm\.", "model.embed_norm."), (r"^(encoder\.)?layers\.", "model.layers."),
        (r"\.attn\.Wqkv\.", ".self_attn.qkv."), (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
        (r"\.norm1\.", ".input_layernorm."), (r"\.norm2\.", ".post_mlp_layernorm."),
        (r"\.post_attention_layernorm\.", ".input_layernorm."),
        (r"\.post_mlp_layernorm\.", ".post_attention_layernorm."), (r"\.mlp\.fc(11|1)\.", ".mlp.up_proj."),
        (r"\.mlp\.fc12\.", ".mlp.gate_proj."), (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        (r"\.mlp\.router\.layer\.", ".mlp.gate."), (r"\.mlp\.experts\.mlp\.w1$", ".mlp.experts.up"),
        (r"\.mlp\.experts\.mlp\.w2$", ".mlp.experts.down"), (r"\.mlp\.experts\.bias$", ".mlp.experts_bias.weight"),
    ),
    transposed=r".*\.mlp\.experts\.down",
    splits=(QKV, Split(r"(.*\.mlp\.experts)\.(up|down)", (r"\1.#.\2_proj.weight",), "stack")),
)  # fmt: skip
GGUF: Final = Layout(splits=(GGUF_QKV, GGUF_EXPERTS))
_DEFAULTS: Final[dict[str, Any]] = {
    "layer_norm_eps": 1e-12, "type_vocab_size": 2, "max_position_embeddings": 2048,
}  # fmt: skip
_THETA: Final = 1000.0


@dataclass(frozen=True, kw_only=True)
class Biased:
    """A block whose results all have the same row added."""

    block: Block

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        out, row = self.block.emit(build, x), build.buffer("mlp.experts_bias", x.width)
        table = Matrix(name="mlp.experts_bias", gguf="ffn_exps_bias", rows=1)
        weight = build.matrices("mlp.experts_bias", [table], x.width, None, "embedding")
        # A table of one row, which is that of all tokens.
        build.ops += [Embed(out=row, weight=weight, is_partial=True), Add(residual=out, x=row)]
        return out


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(
        hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head", intermediate_size="n_inner",
        max_position_embeddings="n_positions", layer_norm_eps="layer_norm_epsilon", rope_theta="rotary_emb_base",
        hidden_act="activation_function", num_experts_per_tok="moe_top_k",
    ).with_defaults(_DEFAULTS)  # fmt: skip
    for key in (
        "prenorm", "parallel_block", "causal", "use_rms_norm", "rotary_emb_interleaved", "rotary_emb_scale_base",
        "moe_normalize_expert_weights", "expert_choice_router", "num_shared_experts",
    ):  # fmt: skip
        config.refuse_unless(key, (False, 0))
    config.refuse_unless("rotary_emb_fraction", (1, 1.0))
    config.refuse_unless("rotary_scaling_factor", (1, 1.0))
    bias = config.flag("qkv_proj_bias", False)
    if {config.flag(key, False) for key in ("mlp_fc1_bias", "mlp_fc2_bias")} != {bias}:
        raise config.fail("mlp_fc1_bias", "is not supported where qkv_proj_bias and mlp_fc2_bias are otherwise")
    return normed_sums(
        config,
        _mlps(config, bias),
        [pooler(config)],
        "classifier",
        attention={"rope": encoder_rope(config, _THETA), "bias": bias, "o_bias": bias},
        kind="mean",
    )


def _mlps(config: ConfigReader, bias: bool) -> list[Block]:
    size, given = config.integer("intermediate_size"), config.get("hidden_act")
    gated = given in (None, "swiglu", "silu")
    activation = "silu" if gated else read_activation(config)
    dense: Block = MLP(size=size, activation=activation, bias=bias)
    if gated:
        dense = GatedMLP(size=size, activation=activation, bias=bias)
    every = config.integer("moe_every_n_layers", 0, MAX_LAYERS, low=0)
    if not every:
        config.refuse_unless("num_experts", (0,))
        return [dense]
    if every == 1:
        raise config.fail("moe_every_n_layers", "is not supported")
    num_experts = config.integer("num_experts", high=MAX_EXPERTS)
    experts: Block = MixtureOfExperts(
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", high=num_experts),
        size=size,
        activation=activation,
        routing=Routing(renormalize=False),
        gated=gated,
    )
    if config.flag("experts_bias", True):  # no key of Hugging Face's: files of GGUF have none
        experts = Biased(block=experts)
    return [experts if number == 1 else dense for number in range(every)]
