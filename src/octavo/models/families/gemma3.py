"""Gemma 3, text: windows in five layers of six, each kind of layer with a rope of its own, norms of q and k."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Sandwich
from octavo.models.common import Common, head_rope, read_common, windows_of_types
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.families.gemma2 import gemma_norm, softcap
from octavo.models.spec import ModelSpec, RopeSpec

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
    config.refuse_unless("use_bidirectional_attention", (False,))
    # The two ropes stand in forms of their own, read below.
    common = read_common(config.without("rope_parameters", "rope_scaling"), activation_key="hidden_activation")
    rope, local_rope = _ropes(config, common)
    norm = gemma_norm(common, config)
    bias = config.flag("attention_bias", False)

    def layer(window: int) -> Sandwich:
        return Sandwich(
            norm=norm,
            attention=Attention(
                heads=common.heads, rope=local_rope if window else rope, window=window, qk_norm=norm,
                scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5, bias=bias, o_bias=bias,
            ),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )  # fmt: skip

    return common.decoder(
        [layer(window) for window in _layer_windows(config, common.num_layers)],
        norm=norm,
        embedding_scale=common.hidden_size**0.5,
        logit_softcap=softcap(config, "final_logit_softcapping"),
    )


def _layer_windows(config: ConfigReader, num_layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", high=MAX_POSITIONS)
    windows = windows_of_types(config, num_layers, window)
    if windows is not None:
        return windows
    key = "sliding_window_pattern" if config.get("sliding_window_pattern") is not None else "_sliding_window_pattern"
    pattern = config.integer(key, 6, MAX_LAYERS)
    return tuple(window if (layer + 1) % pattern else 0 for layer in range(num_layers))


def _ropes(config: ConfigReader, common: Common) -> tuple[RopeSpec, RopeSpec]:
    """(full layers, layers with a window). Only the former is ever scaled in the older form."""
    theta = {"rope_theta": config.number("rope_theta", _GLOBAL_THETA)}
    local_theta = {"rope_theta": config.number("rope_local_base_freq", _LOCAL_THETA)}
    if config.get("rope_parameters") is not None:
        sections = config.section("rope_parameters")
        full, local = sections.section("full_attention"), sections.section("sliding_attention")
    else:
        full, local = config.section("rope_scaling"), ConfigReader({})
    head_dim, positions = common.heads.head_dim, common.max_position_embeddings
    return head_rope(full.merged(theta), head_dim, positions), head_rope(local.merged(local_theta), head_dim, positions)
