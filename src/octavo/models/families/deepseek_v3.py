"""DeepSeek-V3 and R1, Kimi K2: latent attention, and experts chosen by sigmoids, a bias and groups."""

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
    config.refuse_unless("rope_interleave", (True,))
    config.refuse_unless("scoring_func", ("sigmoid",))
    config.refuse_unless("topk_method", ("noaux_tc",))
    num_groups, top_groups = read_groups(config)
    routing = Routing(
        kind="sigmoid", renormalize=config.flag("norm_topk_prob", True),
        factor=config.number("routed_scaling_factor", 1.0), num_groups=num_groups, top_groups=top_groups, group_best=2,
    )  # fmt: skip
    return latent_decoder(config, routing, has_choice_bias=True)
