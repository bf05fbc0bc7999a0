"""Phi-3-small: layer norms and biases everywhere, a bounded gate, factors of muP, and layers whose heads see some
blocks of keys only: each sees others, and every n-th layer sees all."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import GatedMLP
from octavo.models.common import Common, read_common
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.families.phimoe import with_mscale, without_mscales
from octavo.models.layout import QKV_BY_HEAD, Layout, Split
from octavo.models.spec import ModelSpec
from octavo.ops.operands import KeyBlocks

HF: Final = Layout(
    renames=(
        (r"\.query_key_value\.", ".qkv."), (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
        (r"\.final_layernorm\.", ".norm."), (r"\.mlp\.up_proj\.", ".mlp.gate_up."),
    ),
    splits=(QKV_BY_HEAD, Split(r"(.*\.mlp\.)gate_up\.(\w+)", (r"\1gate_proj.\2", r"\1up_proj.\2"), "pairs")),
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
#: Behind the ranks of its vocabulary stand special tokens, of which only these were trained.
_SPECIAL: Final = range(100_256, 100_352)
_TRAINED: Final = (100_257, 100_261, 100_262, 100_263, 100_266)  # <|endoftext|>, system, user, assistant, <|end|>


def spec(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("hidden_act", ("gegelu",))
    config.refuse_unless("gegelu_limit", (20, 20.0))  # built into the operation
    config.refuse_unless("rope_position_scale", (1, 1.0))
    config.refuse_unless("ff_dim_multiplier", ())
    config = config.aliased(
        rms_norm_eps="layer_norm_epsilon", rope_theta="rope_embedding_base", intermediate_size="ff_intermediate_size"
    )
    config, scale = without_mscales(config.with_defaults(_DEFAULTS).replaced(hidden_act="silu"))
    common = with_mscale(read_common(config), scale).with_norm(kind="layer", bias=True)
    head_dim = common.heads.head_dim
    by_dim = config.flag("mup_use_scaling", True)
    options: dict[str, Any] = {
        "mlp": GatedMLP(size=common.intermediate_size, activation="gegelu", bias=True), "bias": True, "o_bias": True,
        "scale": config.number("mup_attn_multiplier", 1.0) / head_dim if by_dim else head_dim**-0.5,
    }  # fmt: skip
    blocks, key = _blocks(config, common), "dense_attention_every_n_layers"
    dense = config.integer(key, MAX_LAYERS + 1 if config.has(key) else 2, MAX_LAYERS + 1)  # null: no layer sees all
    layers = [
        llama_layer(common, blocks=blocks if number % dense else None, **options)
        for number in range(1, common.num_layers + 1)
    ]
    return common.decoder(
        layers,
        embedding_scale=config.number("mup_embedding_multiplier", 10.0),
        given_scale=config.number("mup_embedding_multiplier", 10.0),
        logit_scale=1 / config.number("mup_width_multiplier", 8.0),
        unused_ids=tuple(each for each in _SPECIAL if each < common.vocab_size and each not in _TRAINED),
    )


def _blocks(config: ConfigReader, common: Common) -> KeyBlocks:
    size = config.integer("blocksparse_block_size", 64, MAX_POSITIONS)
    if size % 16:
        raise config.fail("blocksparse_block_size", "is not a multiple of 16")
    stride = config.integer("blocksparse_vert_stride", 8, MAX_POSITIONS)
    alike = config.flag("blocksparse_homo_head_pattern", False)
    return KeyBlocks(
        size=size,
        local=config.integer("blocksparse_num_local_blocks", 16, MAX_POSITIONS),
        stride=stride,
        step=0 if alike else max(1, stride // common.heads.num_heads),
    )
