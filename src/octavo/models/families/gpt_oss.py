"""GPT-OSS: experts with biases and a bounded activation, sinks, windows in every other layer, biases everywhere."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import layer_windows, read_common, read_experts, with_local_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import GGUF_EXPERTS, Layout, Split
from octavo.models.spec import ModelSpec

_GATE_UP: Final = (r"\1.#.gate_proj.{}", r"\1.#.up_proj.{}")
HF: Final = Layout(
    renames=((r"\.mlp\.router\.", ".mlp.gate."), (r"\.sinks$", ".sinks.weight")),
    transposed=r".*\.experts\.(gate_up|down)_proj",  # where they are no blocks
    splits=(
        Split(r"(.*\.experts)\.gate_up_proj(_blocks)?", tuple(name.format("weight") for name in _GATE_UP), "pairs"),
        Split(r"(.*\.experts)\.gate_up_proj_bias", tuple(name.format("bias") for name in _GATE_UP), "pairs"),
        Split(r"(.*\.experts)\.down_proj(_blocks)?", (r"\1.#.down_proj.weight",), "stack"),
        Split(r"(.*\.experts)\.down_proj_bias", (r"\1.#.down_proj.bias",), "stack"),
    ),
)
GGUF: Final = Layout(renames=((r"\.post_attention_norm\.", ".ffn_norm."),), splits=(GGUF_EXPERTS,))
_DEFAULTS: Final[dict[str, Any]] = {
    "head_dim": 64, "rms_norm_eps": 1e-5, "sliding_window": 128, "max_position_embeddings": 131_072,
    "num_experts_per_tok": 4, "hidden_act": "silu",
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config.section("quantization_config").refuse_unless("quant_method", ("mxfp4",))
    # What the activation does is built into the operation.
    config.refuse_unless("swiglu_limit", (7.0,))
    config.refuse_unless("swiglu_alpha", (1.702,))
    config.refuse_unless("hidden_act", ("silu",))
    config = with_local_experts(config.without("quantization_config")).with_defaults(_DEFAULTS)
    common = read_common(config, has_experts=True)
    bias = config.flag("attention_bias", True)
    experts = read_experts(config, common, activation="swiglu_oai", router_bias=True, bias=True)
    windows = layer_windows(config, common.num_layers, pattern=2)
    return common.decoder(
        [llama_layer(common, mlp=experts, window=width, has_sinks=True, bias=bias, o_bias=bias) for width in windows]
    )
