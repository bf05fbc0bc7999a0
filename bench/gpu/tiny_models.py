"""Tiny models with random weights, saved as checkpoints, and what transformers says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from gpu.shapes import tokenizer

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
VOCAB: Final = 512
_SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_LLAMA3_ROPE: Final = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
#: Name -> (family, what differs): each takes another way through the kernels.
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "qwen3": ("Qwen3", {"head_dim": 128}),
    "llama": ("Llama", {"head_dim": 64, "rope_parameters": _LLAMA3_ROPE}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 7, "head_dim": 256, "num_key_value_heads": 1, "sliding_window": 64,
         "query_pre_attn_scalar": 256, "tie_word_embeddings": True},
    ),
    "gemma2": (
        "Gemma2",
        {"head_dim": 128, "sliding_window": 64, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 15.0,
         "tie_word_embeddings": True},
    ),
}  # fmt: skip


def make(directory: Path, name: str) -> Path:
    """A checkpoint in bfloat16 with a tokenizer, in `directory/name`."""
    family, options = FAMILIES[name]
    config = getattr(transformers, f"{family}{'Text' if family == 'Gemma3' else ''}Config")(**{**_SIZES, **options})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key:
                parameter.copy_(0.1 * noise + (0.0 if family.startswith("Gemma") else 1.0))
            else:  # so that activations keep their size, and logits differ by some units
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 * (3.0 if "embed" in key or "head" in key else 1.0))
    path = directory / name
    model.to(torch.bfloat16).save_pretrained(path)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer(VOCAB)))
    return path


def log_probs(path: Path, device: str, dtype: torch.dtype, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each sequence, float32 [len, VOCAB] on the CPU: what follows each of its tokens."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    model = model.to(device).eval()
    with torch.no_grad():
        found = [model(torch.tensor([list(sequence)], device=device)).logits[0] for sequence in sequences]
    return [logits.float().log_softmax(dim=-1).cpu() for logits in found]
