"""Tiny random models of transformers with an encoder and a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

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


def save_tokenizer(directory: Path) -> None:
    """Words w4, w5, ... for the ids from 4 on; a text begins with <s> and ends with </s>, as BART's does."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCAB)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
