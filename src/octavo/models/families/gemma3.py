"""Gemma 3, text: windows in five layers of six, each kind of layer with a rope of its own, norms of q and k.
EmbeddingGemma is one whose tokens see to both sides."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Sandwich
from octavo.models.common import layer_ropes, layer_windows, norm_offset, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec

_GLOBAL_THETA: Final = 1_000_000.0
_LOCAL_THETA: Final = 10_000.0
_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 262_208,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.merged(_DEFAULTS)
    # No Gemma 3 has it, and implementations disagree on what it would do.
    config.refuse_unless("attn_logit_softcapping", ())
    # Made for vectors: then windows reach to both sides, half as far to each.
    both_ways = config.flag("use_bidirectional_attention", False)
    # The two ropes stand in forms of their own, read below.
    common = read_common(config.without("rope_parameters", "rope_scaling"), activation_key="hidden_activation")
    theta = config.number("rope_theta", _GLOBAL_THETA), config.number("rope_local_base_freq", _LOCAL_THETA)
    rope, local_rope = layer_ropes(config, common, *theta)
    common = common.with_norm(offset=norm_offset(config))
    bias = config.flag("attention_bias", False)

    def layer(window: int) -> Sandwich:
        return Sandwich(
            norm=common.norm,
            attention=Attention(
                heads=common.heads, rope=local_rope if window else rope, window=window, qk_norm=common.norm,
                scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5, bias=bias, o_bias=bias,
                causal=not both_ways,
            ),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )  # fmt: skip

    windows = layer_windows(config, common.num_layers, pattern=6)
    return common.decoder(
        [layer(window // 2 + 1 if window and both_ways else window) for window in windows],
        bidirectional=both_ways,
        embedding_scale=common.hidden_size**0.5,
        logit_softcap=config.bound("final_logit_softcapping"),
    )
