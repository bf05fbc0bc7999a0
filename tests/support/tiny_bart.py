"""Tiny random models of transformers with an encoder and a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 96
MAX_POSITIONS = 128


def make_bart(directory: Path, kind: str = "Bart", **options: Any) -> Any:
    """A random model, saved to `directory`. Weights are large enough for differences to show."""
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": VOCAB, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 128,
            "max_position_embeddings": MAX_POSITIONS, "scale_embedding": True, "forced_eos_token_id": None,
            "decoder_start_token_id": 2, **options,
        }
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(1.0 + 0.15 * noise if is_norm else 0.15 * noise)
        model.final_logits_bias.copy_(torch.randn(1, VOCAB, generator=generator))
    model.save_pretrained(directory)
    return model


def random_ids(length: int, seed: int) -> list[int]:
    ids: list[int] = torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def logits_of(model: Any, encoder_ids: list[int], decoder_ids: list[int]) -> torch.Tensor:
    """[decoder's tokens, V]."""
    with torch.no_grad():
        logits: torch.Tensor = model(
            input_ids=torch.tensor([encoder_ids]), decoder_input_ids=torch.tensor([decoder_ids])
        ).logits
    return logits[0]
