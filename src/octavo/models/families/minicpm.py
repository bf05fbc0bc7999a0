"""MiniCPM 1, 2 and 4: Llama with Granite's factors, which it derives from three numbers of its own."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.families import granite
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("sparse_config", ())
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    head_dim = config.integer("head_dim", max(1, hidden // num_heads))
    multiplier = config.number("scale_depth", 1.0) / num_layers**0.5
    decoder = granite.spec(
        config.with_defaults(
            {
                "hidden_act": "silu",
                "tie_word_embeddings": True,
                "embedding_multiplier": config.number("scale_emb", 1.0),
                "residual_multiplier": multiplier,
                "attention_multiplier": head_dim**-0.5,
                "logits_scaling": hidden / config.number("dim_model_base", 1.0),
            }
        )
    )
    return replace(decoder, given_scale=1 / multiplier)  # what is given is not multiplied as embeddings are
