"""Gemma 3, text: windows in five layers of six, each kind of layer with a rope of its own, norms of q and k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader, base_spec, read_layer_types, read_rope
from octavo.models.gemma2 import gemma_blocks, softcap, with_defaults
from octavo.models.spec import ArchSpec, RopeSpec

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


def spec(config: dict[str, Any]) -> ArchSpec:
    reader = with_defaults(config, _DEFAULTS)
    # No Gemma 3 has it, and implementations disagree on what it would do.
    reader.refuse_unless("attn_logit_softcapping", ())
    # The two ropes stand in forms of their own, read below.
    plain = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
    base = base_spec(with_defaults(plain, _DEFAULTS), activation_key="hidden_activation")
    rope, local_rope = _ropes(reader, base.max_position_embeddings)
    return replace(
        gemma_blocks(base, reader),
        qk_norm=True,
        logit_softcap=softcap(reader, "final_logit_softcapping"),
        layer_windows=_layer_windows(reader, base.num_layers),
        rope=rope,
        local_rope=local_rope,
    )


def _layer_windows(reader: ConfigReader, num_layers: int) -> tuple[int, ...]:
    window = reader.integer("sliding_window", high=MAX_POSITIONS)
    types = read_layer_types(reader, num_layers)
    if types is not None:
        return tuple(window if kind == "sliding" else 0 for kind in types)
    key = "sliding_window_pattern" if reader.get("sliding_window_pattern") is not None else "_sliding_window_pattern"
    pattern = reader.integer(key, 6, MAX_LAYERS)
    return tuple(window if (layer + 1) % pattern else 0 for layer in range(num_layers))


def _ropes(reader: ConfigReader, max_positions: int) -> tuple[RopeSpec, RopeSpec]:
    """(full layers, layers with a window). Only the former is ever scaled in the older form."""
    theta = {"rope_theta": reader.number("rope_theta", _GLOBAL_THETA)}
    local_theta = {"rope_theta": reader.number("rope_local_base_freq", _LOCAL_THETA)}
    if reader.get("rope_parameters") is not None:
        sections = reader.section("rope_parameters")
        full, local = sections.section("full_attention"), sections.section("sliding_attention")
    else:
        full, local = reader.section("rope_scaling"), ConfigReader({})
    return read_rope(full.merged(theta), max_positions), read_rope(local.merged(local_theta), max_positions)
