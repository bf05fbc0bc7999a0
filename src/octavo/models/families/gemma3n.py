"""Gemma 3n, text: Gemma 3 with streams, an input for each layer, few gates open, and last layers without keys."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP
from octavo.models.common import layer_ropes, layer_windows, read_common, shared_kv_layers
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.layout import KV_SHARING, STACKED_ALTUP, Layout
from octavo.models.spec import ModelSpec, NormSpec
from octavo.models.stream_blocks import AltUpEnd, AltUpLayer, AltUpStart, LayerInput, LayerInputs
from octavo.ops.stream_operations import MAX_STREAMS

_SURPLUS: Final = (*KV_SHARING, r".*\.correct_output_scale\.weight", r".*\.altup_correct_scale\.weight")
HF: Final = Layout(surplus=_SURPLUS, renames=((r"\.correct_output_scale$", ".correct_output_scale.weight"),))
GGUF: Final = Layout(surplus=_SURPLUS, splits=(STACKED_ALTUP,))
_GLOBAL_THETA: Final = 1_000_000.0
_LOCAL_THETA: Final = 10_000.0
_SPARSE_LAYERS: Final = 10  # of a configuration that does not say it, where there are more
_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 262_400, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 35,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32_768, "sliding_window": 512, "tie_word_embeddings": True,
    "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256, "laurel_rank": 64,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    # Null means none here; only where the key is absent does the default hold.
    softcap = config.bound("final_logit_softcapping") if config.has("final_logit_softcapping") else 30.0
    config = config.merged(_DEFAULTS)
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    sizes = config.sizes("intermediate_size", num_layers)
    config = config.replaced(intermediate_size=max(sizes))
    common = read_common(config.without("rope_parameters", "rope_scaling"), activation_key="hidden_activation")
    rope, local_rope = layer_ropes(config, common, _GLOBAL_THETA, _LOCAL_THETA)
    windows = layer_windows(config, num_layers, pattern=5)
    sources = shared_kv_layers(config, windows, config.integer("num_kv_shared_layers", 15, num_layers - 1, low=0))
    cuts = _cuts(config, num_layers)
    num_streams = config.integer("altup_num_inputs", 4, MAX_STREAMS, low=2)
    active = config.integer("altup_active_idx", 0, num_streams - 1, low=0)
    input_size, rank = config.integer("hidden_size_per_layer_input"), config.integer("laurel_rank")
    num_rows, bias = config.integer("vocab_size_per_layer_input"), config.flag("attention_bias", False)

    def layer(number: int) -> AltUpLayer:
        window, source = windows[number], sources[number]
        return AltUpLayer(
            norm=common.norm,
            attention=Attention(
                heads=common.heads, rope=local_rope if window else rope, window=window, scale=1.0, qk_norm=common.norm,
                v_norm=NormSpec(eps=common.norm.eps, has_weight=False), kv_from=source, bias=bias, o_bias=bias,
            ),
            mlp=GatedMLP(size=sizes[number], activation=common.activation, cut=cuts[number]),
            laurel_rank=rank,
            layer_input=LayerInput(number=number, size=input_size, activation=common.activation, norm=common.norm),
            active=active,
            has_scale=config.flag("altup_correct_scale", True),
        )  # fmt: skip

    inputs = LayerInputs(
        num_layers=num_layers, size=input_size, num_rows=num_rows, is_partial=num_rows < common.vocab_size,
        norm=common.norm,
    )  # fmt: skip
    return common.decoder(
        [layer(number) for number in range(num_layers)],
        before=(inputs, AltUpStart(num_streams=num_streams)),
        after=(AltUpEnd(),),
        embedding_scale=common.hidden_size**0.5,
        logit_softcap=softcap,
    )


def _cuts(config: ConfigReader, num_layers: int) -> list[float | None]:
    """From the share of gates that are to be 0: how many standard deviations above their mean the others lie."""
    shares = config.get("activation_sparsity_pattern")
    if shares is None:
        num_sparse = _SPARSE_LAYERS if num_layers > _SPARSE_LAYERS else 0
        shares = [0.95] * num_sparse + [0.0] * (num_layers - num_sparse)
    if (
        not isinstance(shares, list)
        or len(shares) != num_layers
        or not all(type(share) in (int, float) and 0 <= share < 1 for share in shares)
    ):
        raise config.fail("activation_sparsity_pattern", f"is not a list of shares below 1 for {num_layers} layers")
    return [NormalDist().inv_cdf(share) if share else None for share in shares]
