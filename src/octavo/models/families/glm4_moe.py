"""GLM-4.5 and 4.6: experts with a bias for choosing and shared ones beside them, behind dense layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import Sequential
from octavo.models.common import read_common, read_experts, read_noaux_routing
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families.llama import llama_layer
from octavo.models.layout import EXPERTS_HF, GGUF_EXPERTS, Layout
from octavo.models.spec import ModelSpec

HF: Final = replace(EXPERTS_HF, has_draft_layers=True)
GGUF: Final = Layout(
    renames=((r"\.post_attention_norm\.", ".ffn_norm."),), splits=(GGUF_EXPERTS,), has_draft_layers=True
)
_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(num_experts="n_routed_experts").with_defaults(_DEFAULTS)
    common = read_common(config, rotates_in_part=True, has_experts=True)
    bias = config.flag("attention_bias", False)
    experts = read_experts(config, common, routing=read_noaux_routing(config), has_choice_bias=True)
    shared = shared_mlp(config.integer("n_shared_experts", 1) * experts.size, common.activation)
    options: dict[str, Any] = {"bias": bias, "qk_norm": common.norm if config.flag("use_qk_norm", False) else None}
    sparse = llama_layer(common, mlp=WithShared(experts=experts, shared=shared), **options)
    return common.decoder(behind_dense(config, llama_layer(common, **options), sparse, common.num_layers))


def behind_dense(config: ConfigReader, dense: Sequential, sparse: Sequential, num_layers: int) -> list[Sequential]:
    """The layers of a model whose first `first_k_dense_replace` have no experts."""
    count = config.integer("first_k_dense_replace", 1, MAX_LAYERS, low=0)
    return [dense if number < count else sparse for number in range(num_layers)]
