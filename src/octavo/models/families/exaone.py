"""EXAONE 3 is Llama under other names. EXAONE 4: norms behind the blocks and of the heads; windows in three layers of
four, which then are the ones that know positions."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, PostNorm
from octavo.models.common import layer_windows, read_common
from octavo.models.config_reader import MAX_POSITIONS, ConfigReader
from octavo.models.families import llama
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_NAMES: Final = {
    "num_hidden_layers": "num_layers", "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function",
}  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "rms_norm_eps": 1e-5}
HF: Final = Layout(
    renames=(
        (r"^transformer\.wte\.", "model.embed_tokens."), (r"^transformer\.ln_f\.", "model.norm."),
        (r"^transformer\.h\.", "model.layers."), (r"\.ln_1\.", ".input_layernorm."),
        (r"\.ln_2\.", ".post_attention_layernorm."), (r"\.attn\.attention\.out_proj\.", ".self_attn.o_proj."),
        (r"\.attn\.attention\.", ".self_attn."), (r"\.c_fc_0\.", ".gate_proj."), (r"\.c_fc_1\.", ".up_proj."),
        (r"\.c_proj\.", ".down_proj."),
    )
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    return llama.spec(config.aliased(**_NAMES).with_defaults(_DEFAULTS))


def spec_4(config: ConfigReader) -> ModelSpec:
    common = read_common(config.with_defaults(_DEFAULTS))

    def layer(window: int, has_rope: bool) -> PostNorm:
        return PostNorm(
            norm=common.norm,
            attention=Attention(
                heads=common.heads, rope=common.rope if has_rope else None, window=window, qk_norm=common.norm,
                scale=common.heads.head_dim**-0.5,
            ),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )  # fmt: skip

    if config.get("sliding_window") is None:
        return common.decoder([layer(0, True)] * common.num_layers)
    return common.decoder([layer(window, window > 0) for window in _layer_windows(config, common.num_layers)])


def _layer_windows(config: ConfigReader, num_layers: int) -> tuple[int, ...]:
    pattern = config.get("sliding_window_pattern")
    if config.get("layer_types") is not None or not isinstance(pattern, str):
        return layer_windows(config, num_layers, pattern=4)
    if not pattern or set(pattern) - {"L", "G"}:  # such as LLLG: local and global ones
        raise config.fail("sliding_window_pattern", "is not a series of L and G")
    window = config.integer("sliding_window", high=MAX_POSITIONS)
    return tuple(window if pattern[layer % len(pattern)] == "L" else 0 for layer in range(num_layers))
