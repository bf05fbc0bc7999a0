"""Command-R and Command-R+: attention and MLP side by side behind one norm, pairs of the rotation side by side.

Command R7B and Command A (`spec_2`) have windows in three layers of four, and positions in those layers only.
"""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Parallel
from octavo.models.common import Common, layer_windows, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec

LAYOUT: Final = Layout(
    interleaved=True,
    splits=(Split(r"(.*(?:self_attn\.|attn_)[qk]_norm)\.weight", (r"\1.#.weight",), "stack"),),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config, common = _read(config)
    options: dict[str, Any] = {"rope": common.rope}
    if config.flag("use_qk_norm", False):
        options |= {"qk_norm": common.norm, "qk_norm_of": "each head"}
    return _decoder(config, common, [options] * common.num_layers)


def spec_2(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("use_qk_norm", (False,))
    config.refuse_unless("rotary_pct", (1, 1.0))
    for key in ("use_parallel_block", "use_gated_activation"):
        config.refuse_unless(key, (True,))
    config, common = _read(config)
    windows = layer_windows(config.with_defaults({"sliding_window": 4096}), common.num_layers, pattern=4)
    layers = [{"window": width, "rope": common.rope if width else None} for width in windows]
    return _decoder(config, common, layers)


def _read(config: ConfigReader) -> tuple[ConfigReader, Common]:
    config = config.aliased(rms_norm_eps="layer_norm_eps").with_defaults(_DEFAULTS)
    if config.get("model_max_length") is not None:  # what the rotation was trained for; the other is less
        config = config.without("max_position_embeddings").aliased(max_position_embeddings="model_max_length")
    return config, read_common(config).with_norm(kind="layer")


def _decoder(config: ConfigReader, common: Common, attentions: list[dict[str, Any]]) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    scale = common.heads.head_dim**-0.5
    layers = [
        Parallel(
            norm=common.norm,
            shares_norm=True,
            attention=Attention(heads=common.heads, scale=scale, bias=bias, o_bias=bias, **options),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )
        for options in attentions
    ]
    return common.decoder(layers, logit_scale=config.number("logit_scale"))
