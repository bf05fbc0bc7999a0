"""The second MiniMax: experts chosen by sigmoids with a bias, norms of whole rows of q and k, half a head rotated."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common, read_experts, with_local_experts
from octavo.models.config_reader import MAX_HEAD_DIM, ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.families.mixtral import HF as MIXTRAL
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

HF: Final = Layout(
    renames=(
        *MIXTRAL.renames,
        (r"\.mlp\.(gate\.)?e_score_correction_bias$", ".mlp.gate.e_score_correction.bias"),
    )
)
_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 256, "num_experts_per_tok": 8, "hidden_act": "silu", "head_dim": 128, "rope_theta": 5e6,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = with_local_experts(config).with_defaults(_DEFAULTS)
    for key, allowed in {
        "scoring_func": ("sigmoid",), "use_qk_norm": (True,), "qk_norm_type": ("per_layer",),
        "use_routing_bias": (True,), "shared_intermediate_size": (0,),
    }.items():  # fmt: skip
        config.refuse_unless(key, allowed)
    for key in ("full_attention", "linear_attention", "mlp"):
        for factor in ("alpha", "beta"):
            config.refuse_unless(f"layernorm_{key}_{factor}", (1, 1.0))
    if any(kind != 1 for kind in config.get("attn_type_list") or []):
        raise config.fail("attn_type_list", "has layers without attention: not supported")
    if config.get("rotary_dim") is not None:
        share = config.integer("rotary_dim", high=MAX_HEAD_DIM) / config.integer("head_dim")
        config = config.merged({"partial_rotary_factor": share})
    common = read_common(config, rotates_in_part=True, has_experts=True)
    experts = read_experts(config, common, routing=Routing(kind="sigmoid"), has_choice_bias=True)
    layer = llama_layer(common, mlp=experts, qk_norm=common.norm, qk_norm_of="row")
    return common.decoder([layer] * common.num_layers)
