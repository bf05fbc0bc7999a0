"""The third DeepSeek, Kimi and GLM-4.7-Flash: latent attention, and experts chosen by sigmoids, a bias and groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.common import read_noaux_routing
from octavo.models.config_reader import ConfigReader
from octavo.models.families.deepseek_v2 import LATENT_HF, latent_decoder
from octavo.models.layout import EXPERTS_HF, STACKED_EXPERTS
from octavo.models.spec import ModelSpec

HF: Final = replace(EXPERTS_HF, interleaved=True, splits=(LATENT_HF, *STACKED_EXPERTS), has_draft_layers=True)


def spec(config: ConfigReader) -> ModelSpec:
    config = _first_dense(config.aliased(num_experts="n_routed_experts"))
    config.refuse_unless("rope_interleave", (True,))
    config.refuse_unless("scoring_func", ("sigmoid",))
    config.refuse_unless("topk_method", ("noaux_tc",))
    return latent_decoder(config, read_noaux_routing(config), has_choice_bias=True)


def _first_dense(config: ConfigReader) -> ConfigReader:
    """With the number of layers that have no experts, where the configuration names each layer's kind instead."""
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return config
    num_dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if not isinstance(kinds, list) or kinds != ["dense"] * num_dense + ["sparse"] * (len(kinds) - num_dense):
        raise config.fail("mlp_layer_types", "is not a list of dense layers with sparse ones behind them")
    return config.with_defaults({"first_k_dense_replace": num_dense})
