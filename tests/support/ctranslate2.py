"""Real Whispers out of CTranslate2's containers, as directories of transformers' form."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_NAMES = (
    (r"^(encoder|decoder)/", r"model.\1."), (r"\.layer_(\d+)/", r".layers.\1."), (r"/", "."),
    (r"\.embeddings\.weight$", ".embed_tokens.weight"),
    (r"\.position_encodings\.encodings$", ".embed_positions.weight"),
    (r"^(model\.(?:en|de)coder)\.layer_norm\.", r"\1.layer_norm."),
    (r"\.self_attention\.layer_norm\.", ".self_attn_layer_norm."),
    (r"\.attention\.layer_norm\.", ".encoder_attn_layer_norm."), (r"\.ffn\.layer_norm\.", ".final_layer_norm."),
    (r"\.ffn\.linear_0\.", ".fc1."), (r"\.ffn\.linear_1\.", ".fc2."),
    (r"\.gamma$", ".weight"), (r"\.beta$", ".bias"),
)  # fmt: skip


def variables(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, as the container has them."""
    data = path.read_bytes()
    at = 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        size = take("<H")
        at += size
        return data[at - size : at - 1].decode()

    take("<I")  # version
    text()  # kind of model
    take("<I")  # revision
    found: dict[str, np.ndarray] = {}
    for _ in range(take("<I")):
        name = text()
        shape = [take("<I") for _ in range(take("<B"))]
        dtype = _DTYPES[take("<B")]
        size = take("<I")
        found[name] = np.frombuffer(data[at : at + size], dtype).reshape(shape)
        at += size
    return found


def whisper_tensors(path: Path) -> dict[str, torch.Tensor]:
    """float32, by transformers' names."""
    tensors: dict[str, torch.Tensor] = {}
    for name, array in variables(path).items():
        if array.ndim == 0 or name.endswith(("alignment_heads", "projection/weight")):
            continue
        renamed = name
        for pattern, replacement in _NAMES:
            renamed = re.sub(pattern, replacement, renamed)
        _put(tensors, renamed, torch.from_numpy(array.astype(np.float32)))
    return tensors


def _put(tensors: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    """Queries, keys and values stand in one tensor; of cross attention keys and values."""
    found = re.match(r"(.*)\.(self_attention|attention)\.linear_(\d)\.(weight|bias)$", name)
    if found is None:
        tensors[name] = value
        return
    prefix, kind, number, suffix = found.groups()
    place = f"{prefix}.{'self_attn' if kind == 'self_attention' else 'encoder_attn'}"
    of_kind = {
        "self_attention": (("q_proj", "k_proj", "v_proj"), ("out_proj",)),
        "attention": (("q_proj",), ("k_proj", "v_proj"), ("out_proj",)),
    }
    parts = of_kind[kind][int(number)]
    for part, chunk in zip(parts, value.chunk(len(parts)), strict=True):
        if not (part == "k_proj" and suffix == "bias"):  # keys have none: zeros
            tensors[f"{place}.{part}.{suffix}"] = chunk.clone()


def make_directory(model: Path, tokenizer: Path, settings: dict[str, Any], target: Path) -> None:
    """`settings`: of the package's config.json."""
    from safetensors.torch import save_file

    tensors = whisper_tensors(model)
    vocab, width = tensors["model.decoder.embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("model.decoder.layers."))
    is_english = vocab == 51_864
    config = {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "vocab_size": vocab,
        "d_model": width, "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1], "encoder_layers": layers,
        "decoder_layers": layers, "encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64,
        "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, "max_source_positions": 1500,
        "max_target_positions": 448, "activation_function": "gelu", "torch_dtype": "float16",
        "decoder_start_token_id": 50_257 if is_english else 50_258, "eos_token_id": 50_256 if is_english else 50_257,
        "bos_token_id": 50_257, "pad_token_id": 50_256, "is_encoder_decoder": True,
    }  # fmt: skip
    generation = {
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "is_multilingual": not is_english,
        "alignment_heads": settings["alignment_heads"],
    }
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    (target / "generation_config.json").write_text(json.dumps(generation))
    (target / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
