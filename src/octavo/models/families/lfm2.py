"""LFM2: short convolutions in most layers, attention with norms of q and k in the others."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential, ShortConvolution
from octavo.models.common import read_common
from octavo.models.config_reader import MAX_TAPS, ConfigReader
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    renames=(
        (r"\.operator_norm\.", ".input_layernorm."), (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."), (r"\.([qk])_layernorm\.", r".\1_norm."),
        (r"\.feed_forward\.w1\.", ".mlp.gate_proj."), (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
        (r"\.feed_forward\.w3\.", ".mlp.up_proj."), (r"^model\.embedding_norm\.", "model.norm."),
    ),
    transposed=r".*\.conv\.conv\.weight",
)  # fmt: skip
GGUF: Final = Layout(
    renames=((r"^token_embd_norm\.", "output_norm."),), transposed=r"blk\.\d+\.shortconv\.conv\.weight"
)
_KINDS: Final = ("conv", "full_attention")


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(rms_norm_eps="norm_eps", intermediate_size="block_ff_dim")
    config = config.with_defaults({"hidden_act": "silu", "tie_word_embeddings": config.flag("tie_embedding", True)})
    common = read_common(config)
    convolution = ShortConvolution(
        taps=config.integer("conv_L_cache", 3, MAX_TAPS, low=2), bias=config.flag("conv_bias", False)
    )
    attention = Attention(heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, qk_norm=common.norm)
    mlp = GatedMLP(size=_mlp_size(config, common.intermediate_size), activation=common.activation)
    mixers: dict[str, Block] = dict(zip(_KINDS, (convolution, attention), strict=True))
    return common.decoder(
        Sequential(norm=common.norm, attention=mixers[kind], mlp=mlp)
        for kind in config.layer_kinds(common.num_layers, _KINDS)
    )


def _mlp_size(config: ConfigReader, size: int) -> int:
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    size, multiple = 2 * size // 3, config.integer("block_multiple_of", 256)
    if config.get("block_ffn_dim_multiplier") is None:
        return size
    size = int(config.number("block_ffn_dim_multiplier") * size)
    return -(-size // multiple) * multiple
