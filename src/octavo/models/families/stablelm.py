"""StableLM 2 and StableLM 3B: Llama with layer norms and heads that are rotated in part; larger ones with attention and
MLP side by side behind one norm, and with norms of q and k that are each head's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Parallel, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec

_NAMES: Final = {"rms_norm_eps": "layer_norm_eps", "partial_rotary_factor": "rope_pct"}
_DEFAULTS: Final[dict[str, Any]] = {"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "hidden_act": "silu"}
HF: Final = Layout(renames=((r"\.([qk])_layernorm\.norms\.", r".\1_norm."),))
GGUF: Final = Layout(splits=(Split(r"(blk\.\d+\.attn_[qk]_norm)\.weight", (r"\1.#.weight",), "stack"),))


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES).with_defaults({"rms_norm_eps": config.get("norm_eps")}).with_defaults(_DEFAULTS)
    common = read_common(config, rotates_in_part=True).with_norm(kind="layer", bias=True)
    attention = Attention(
        heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5,
        bias=config.flag("use_qkv_bias", False), qk_norm_of="each head",
        qk_norm=replace(common.norm, bias=False) if config.flag("qk_layernorm", False) else None,
    )  # fmt: skip
    mlp = GatedMLP(size=common.intermediate_size, activation=common.activation)
    if config.flag("use_parallel_residual", False):
        layer: Parallel | Sequential = Parallel(attention=attention, mlp=mlp, norm=common.norm, shares_norm=True)
    else:
        layer = Sequential(attention=attention, mlp=mlp, norm=common.norm)
    return common.decoder([layer] * common.num_layers)
