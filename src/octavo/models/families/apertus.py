"""Apertus: Llama with a plain MLP of xielu, whose two slopes each layer has learned, and norms of the heads."""

from __future__ import annotations

from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.models.blocks import MLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "xielu", "rms_norm_eps": 1e-5, "rope_theta": 12_000_000.0}
HF: Final = Layout(
    ignored=(r".*\.act_fn\.(beta|eps)",),  # 0.5 and -1e-6
    renames=(
        (r"\.attention_layernorm\.", ".input_layernorm."),
        (r"\.feedforward_layernorm\.", ".post_attention_layernorm."),
    ),
)


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    config.refuse_unless("hidden_act", ("xielu",))
    config.refuse_unless("qk_norm", (True,))
    for key in ("post_norm", "mlp_bias"):
        config.refuse_unless(key, (False,))
    common = read_common(config.replaced(hidden_act="relu"))
    bias = config.flag("attention_bias", False)

    def layer(xielu: tuple[float, float] | None) -> Sequential:
        mlp = MLP(size=common.intermediate_size, activation="xielu", xielu=xielu)
        return llama_layer(common, mlp=mlp, qk_norm=common.norm, bias=bias, o_bias=bias)

    return common.decoder([layer(each) for each in _xielu(config, common.num_layers)])


def _xielu(config: ConfigReader, num_layers: int) -> list[tuple[float, float] | None]:
    """The parameters of each layer. Only GGUF has them in its configuration (`gguf_config`)."""
    found = [config.get(f"xielu.{name}") for name in ("alpha_p", "alpha_n")]
    if found == [None, None]:
        return [None] * num_layers
    lists = [each if isinstance(each, list) else [each] * num_layers for each in found]
    if any(len(each) != num_layers or not all(isinstance(value, float) for value in each) for each in lists):
        raise CheckpointError(f"config: xielu.alpha_p and xielu.alpha_n are not lists of {num_layers} numbers")
    return list(zip(*lists, strict=True))
