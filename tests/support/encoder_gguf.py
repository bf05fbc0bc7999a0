"""Models that give vectors, in GGUF's conventions, as llama.cpp's converter writes them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from octavo.models.checkpoint import read_json
from octavo.models.decoder import define
from octavo.models.directory import open_directory
from octavo.models.layout import TensorSource
from octavo.models.registry import find_family, model_spec

#: What stands in a file as one.
_FUSED = {
    "modern-bert": {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")},
    "jina-bert-v2": {"ffn_up": ("ffn_gate", "ffn_up")},
    "jina-bert-v3": {"attn_qkv": ("attn_q", "attn_k", "attn_v")},
    "nomic-bert-moe": {"attn_qkv": ("attn_q", "attn_k", "attn_v")},
}
_KEYS = {
    "add_embedding_length": ("hidden_size", "n_embd"),
    "add_block_count": ("num_hidden_layers", "n_layer"),
    "add_head_count": ("num_attention_heads", "n_head"),
    "add_head_count_kv": ("num_key_value_heads",),
    "add_key_length": ("head_dim",),
    "add_value_length": ("head_dim",),
    "add_feed_forward_length": ("intermediate_size", "n_inner"),
    "add_layer_norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "add_layer_norm_rms_eps": ("rms_norm_eps",),
    "add_sliding_window": ("local_attention", "sliding_window"),
    "add_rope_freq_base": ("rotary_emb_base",),
    "add_expert_count": ("num_experts",),
    "add_expert_used_count": ("moe_top_k",),
    "add_moe_every_n_layers": ("moe_every_n_layers",),
}


def write_gguf(
    path: Path,
    arch: str,
    directory: Path,
    pooling: gguf.PoolingType,
    extra: dict[str, Any] | None = None,
    labels: Sequence[str] = (),
) -> None:
    """`extra`: tensors beside the checkpoint's. `labels`: of classes, where the configuration has others."""
    saved = read_json(directory / "config.json")
    checkpoint = open_directory(directory, "auto", None)
    definition = define(model_spec(saved, "test"))
    source = TensorSource(checkpoint, find_family(saved, "test").hf, definition)
    writer = gguf.GGUFWriter(path, arch)
    for method, names in _KEYS.items():
        for value in [saved[name] for name in names if saved.get(name) is not None][:1]:
            getattr(writer, method)(value)
    writer.add_context_length(definition.spec.max_position_embeddings)
    rope = saved.get("rope_parameters") or {}
    if (full := rope.get("full_attention", rope)).get("rope_theta"):
        writer.add_rope_freq_base(full["rope_theta"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if arch == "gemma-embedding":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in saved["layer_types"]])
    if arch == "modern-bert":
        writer.add_sliding_window_pattern(3)
    writer.add_pooling_type(pooling)
    writer.add_causal_attention(False)
    if pooling is gguf.PoolingType.RANK:
        writer.add_classifier_output_labels(labels or [str(label) for label in saved["id2label"].values()])
    wholes: dict[str, list[torch.Tensor]] = {}
    for tensor in definition.tensors.values():
        if tensor.gguf.endswith("ffn_exps_bias.weight"):
            continue  # which files leave out
        value = source.get(dataclasses.replace(tensor, rotary_dim=0))
        assert isinstance(value, torch.Tensor)
        value = value + 1 if arch == "gemma-embedding" and tensor.role == "norm" else value
        name = re.sub(r"(_exps)\.\d+\.", r"\1.", tensor.gguf)
        for whole, parts in _FUSED.get(arch, {}).items():
            name = re.sub(rf"\.({'|'.join(parts)})\.", f".{whole}.", name)
        wholes.setdefault(name, []).append(value.reshape(tensor.shape))
    for name, values in wholes.items():
        joined = values[0] if len(values) == 1 else (torch.stack if "_exps" in name else torch.cat)(values)
        writer.add_tensor(name, np.ascontiguousarray(joined.float().numpy()))
    for name, value in (extra or {}).items():
        writer.add_tensor(name, np.ascontiguousarray(value.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
