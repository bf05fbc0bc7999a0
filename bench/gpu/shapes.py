"""The models that are measured: their configurations, their sizes, and directories that `load_format="dummy"` loads.

No weights are stored anywhere: whoever loads a directory makes its own.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

_LLAMA3_ROPE: Final = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder. `more`: what its config.json holds beside the sizes."""

    name: str
    architecture: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    is_tied: bool
    more: Mapping[str, Any]

    @property
    def layer_params(self) -> int:
        """Values in all matrices of all layers."""
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_params(self) -> int:
        """Values in the output matrix."""
        return self.hidden * self.vocab

    @property
    def step_params(self) -> int:
        """Values that a step of decoding reads: all matrices, but of the embedding only a few rows."""
        return self.layer_params + self.head_params

    @property
    def kv_values(self) -> int:
        """Cached values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Name -> (n, k) of the matrices of a layer, and of the output matrix, as they are packed."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "lm_head": (self.vocab, self.hidden),
        }

    def config(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """config.json, as Hugging Face's."""
        return {
            "architectures": [self.architecture], "model_type": self.model_type, "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "intermediate_size": self.intermediate,
            "vocab_size": self.vocab, "max_position_embeddings": self.positions, "tie_word_embeddings": self.is_tied,
            "dtype": dtype, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **self.more,
        }  # fmt: skip


def _silu(eps: float, **more: Any) -> dict[str, Any]:
    return {"hidden_act": "silu", "rms_norm_eps": eps, "attention_bias": False, **more}


_QWEN3: Final[dict[str, Any]] = {
    "architecture": "Qwen3ForCausalLM",
    "model_type": "qwen3",
    "more": _silu(1e-6, rope_theta=1e6),
}
SHAPES: Final[dict[str, Shape]] = {
    shape.name: shape
    for shape in (
        Shape(
            name="Qwen3-0.6B", hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate=3072,
            vocab=151_936, positions=40_960, is_tied=True, **_QWEN3,
        ),
        Shape(
            name="Qwen3-8B", hidden=4096, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=12_288,
            vocab=151_936, positions=40_960, is_tied=False, **_QWEN3,
        ),
        Shape(
            name="Llama-3.1-8B", architecture="LlamaForCausalLM", model_type="llama", hidden=4096, layers=32, heads=32,
            kv_heads=8, head_dim=128, intermediate=14_336, vocab=128_256, positions=131_072, is_tied=False,
            more=_silu(1e-5, mlp_bias=False, rope_theta=500_000.0, rope_parameters=_LLAMA3_ROPE),
        ),
        Shape(
            name="Gemma-3-1B", architecture="Gemma3ForCausalLM", model_type="gemma3_text", hidden=1152, layers=26,
            heads=4, kv_heads=1, head_dim=256, intermediate=6912, vocab=262_144, positions=32_768, is_tied=True,
            more={
                "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
                "sliding_window": 512, "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
            },
        ),
    )
}  # fmt: skip


def tiny(shape: Shape) -> Shape:
    """The same architecture in a size that a CPU runs at once."""
    is_gemma = shape.model_type == "gemma3_text"
    return replace(
        shape, hidden=128, layers=7 if is_gemma else 2, heads=4, kv_heads=1 if is_gemma else 2, head_dim=32,
        intermediate=256, vocab=512, positions=4096,
    )  # fmt: skip


def write_model(shape: Shape, directory: Path, dtype: str = "bfloat16") -> Path:
    """config.json and a tokenizer whose every token has a text, in `directory/name`. Returns that path."""
    path = directory / shape.name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(shape.config(dtype)))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer(shape.vocab)))
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": shape.positions}))
    return path


def tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer in the form of tokenizer.json: the bytes, then made-up words with a space in front.

    It has no merges, so that a text becomes its bytes; but all ids have a text, and streams cost what they cost.
    """
    tokens = [*_byte_letters(), *("\u0120" + _word(i) for i in range(vocab - 256))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [],
        },
    }  # fmt: skip


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be printed."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


def _word(number: int) -> str:
    """At least two letters, different for each number."""
    letters = ""
    number += 26
    while number:
        number, digit = divmod(number, 26)
        letters = string.ascii_lowercase[digit] + letters
    return letters
