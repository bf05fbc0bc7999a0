"""DeepSeek-V3 and R1, Kimi K2, GLM-4.7-Flash: latent attention, and experts chosen by sigmoids, a bias and groups."""

from __future__ import annotations

from typing import Final

from octavo.models.config_reader import ConfigReader
from octavo.models.families.deepseek_v2 import GGUF, LATENT_HF, latent_decoder, read_groups
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

HF: Final = Layout(
    interleaved=True,
    renames=((r"\.e_score_correction_bias$", ".e_score_correction.bias"),),
    splits=(LATENT_HF,),
    has_further_layers=True,
)
__all__ = ["GGUF", "HF", "spec"]


def spec(config: ConfigReader) -> ModelSpec:
    config = _first_dense(config)
    config.refuse_unless("rope_interleave", (True,))
    config.refuse_unless("scoring_func", ("sigmoid",))
    config.refuse_unless("topk_method", ("noaux_tc",))
    num_groups, top_groups = read_groups(config)
    routing = Routing(
        kind="sigmoid", renormalize=config.flag("norm_topk_prob", True),
        factor=config.number("routed_scaling_factor", 1.0), num_groups=num_groups, top_groups=top_groups, group_best=2,
    )  # fmt: skip
    return latent_decoder(config, routing, has_choice_bias=True)


def _first_dense(config: ConfigReader) -> ConfigReader:
    """With the number of layers that have no experts, where the configuration names each layer's kind instead."""
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return config
    num_dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if not isinstance(kinds, list) or kinds != ["dense"] * num_dense + ["sparse"] * (len(kinds) - num_dense):
        raise config.fail("mlp_layer_types", "is not a list of dense layers with sparse ones behind them")
    return config.with_defaults({"first_k_dense_replace": num_dense})
