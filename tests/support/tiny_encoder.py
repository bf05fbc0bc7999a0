"""Tiny random encoders of transformers, with a tokenizer of words."""

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
MAX_POSITIONS = 40


def make_bert(directory: Path, kind: str = "Model", **options: Any) -> Any:
    """A random model, saved to `directory`. Words w4, w5, ... have the ids from 4 on; a text stands between 0 and 2."""
    values = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": MAX_POSITIONS, **options,
    }  # fmt: skip
    torch.manual_seed(3)
    model = getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    words = {"[CLS]": 0, "[PAD]": 1, "[SEP]": 2, "[UNK]": 3, **{f"w{i}": i for i in range(4, VOCAB)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["[CLS]", "[PAD]", "[SEP]", "[UNK]"])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    return model


def with_modules(directory: Path) -> None:
    """Files of sentence-transformers: the mean of all rows, of length 1; a prompt by name."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [{"path": "" if kind == "Transformer" else kind, "type": f"sentence_transformers.models.{kind}"}
               for kind in kinds]  # fmt: skip
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "Pooling").mkdir()
    (directory / "Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    prompts = {"prompts": {"query": "w90 w91 "}}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(prompts))
