"""MiniCPM3: latent attention and dense MLPs, with MiniCPM's factors; see `granite` for where they go."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import GatedMLP, Sequential
from octavo.models.config_reader import ConfigReader
from octavo.models.families.deepseek_v2 import LATENT_GGUF, LATENT_HF, latent_common
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(splits=(LATENT_HF,))
GGUF: Final = Layout(splits=LATENT_GGUF)
_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "tie_word_embeddings": True, "rms_norm_eps": 1e-5}


def spec(config: ConfigReader) -> ModelSpec:
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    config = config.with_defaults({**_DEFAULTS, "v_head_dim": max(1, hidden // num_heads)})
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        config.refuse_unless(key, (0, 1))
    common, attention = latent_common(config)
    multiplier = config.number("scale_depth", 1.4) / common.num_layers**0.5
    common = common.with_norm(eps=common.norm.eps / multiplier**2)
    mlp = GatedMLP(size=common.intermediate_size, activation=common.activation)
    return common.decoder(
        [Sequential(norm=common.norm, attention=attention, mlp=mlp)] * common.num_layers,
        embedding_scale=config.number("scale_emb", 12.0) / multiplier,
        given_scale=1 / multiplier,
        logit_scale=config.number("dim_model_base", 256.0) / hidden,
    )
