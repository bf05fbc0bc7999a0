"""Tiny random models of Phi-3-small, for which transformers has no class: what its description says, in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "vocab_size": 96, "hidden_size": 64,
    "ff_intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "hidden_act": "gegelu", "gegelu_limit": 20.0, "layer_norm_epsilon": 1e-5,
    "rope_embedding_base": 500.0, "rope_position_scale": 1.0, "mup_use_scaling": True, "mup_attn_multiplier": 1.5,
    "mup_embedding_multiplier": 10.0, "mup_width_multiplier": 8.0, "dense_attention_every_n_layers": 2,
    "blocksparse_block_size": 16, "blocksparse_num_local_blocks": 2, "blocksparse_vert_stride": 4,
    "blocksparse_homo_head_pattern": False, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def make_phi3_small(directory: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A random model, saved to `directory`: its configuration and tensors. Some gates come to the bound of theirs."""
    config = CONFIG | options
    hidden, inner = config["hidden_size"], config["ff_intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    qkv = hidden + 2 * config["num_key_value_heads"] * head_dim
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return 0.15 * torch.randn(shape, generator=generator)

    tensors = {"model.embed_tokens.weight": random(config["vocab_size"], hidden)}
    norms = ["model.final_layernorm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norms += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
        for name, rows, columns in (
            ("self_attn.query_key_value", qkv, hidden), ("self_attn.dense", hidden, hidden),
            ("mlp.up_proj", 2 * inner, hidden), ("mlp.down_proj", hidden, inner),
        ):  # fmt: skip
            size = 6.0 if name == "mlp.up_proj" else 1.0
            tensors[f"{prefix}.{name}.weight"] = size * random(rows, columns)
            tensors[f"{prefix}.{name}.bias"] = random(rows)
    for name in norms:
        tensors |= {f"{name}.weight": 1 + random(hidden), f"{name}.bias": random(hidden)}
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return config, tensors


def logits_of(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """[T, V]."""
    x = tensors["model.embed_tokens.weight"][ids] * config["mup_embedding_multiplier"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        x = x + _attention(
            config, tensors, f"{prefix}.self_attn", _norm(config, tensors, f"{prefix}.input_layernorm", x)
        )
        up = _linear(tensors, f"{prefix}.mlp.up_proj", _norm(config, tensors, f"{prefix}.post_attention_layernorm", x))
        gate, value = up[:, ::2].clamp(max=20.0), up[:, 1::2].clamp(-20.0, 20.0)
        x = x + _linear(tensors, f"{prefix}.mlp.down_proj", gate * torch.sigmoid(1.702 * gate) * (value + 1))
    x = _norm(config, tensors, "model.final_layernorm", x)
    return x @ tensors["model.embed_tokens.weight"].T / config["mup_width_multiplier"]


def _linear(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm(config: dict[str, Any], tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(
        x, x.shape[1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], config["layer_norm_epsilon"]
    )


def _attention(config: dict[str, Any], tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    heads, groups, length = config["num_attention_heads"], config["num_key_value_heads"], len(x)
    head_dim = x.shape[1] // heads
    # By head of k and v: the heads of q that read it, its k, its v.
    qkv = _linear(tensors, f"{name}.query_key_value", x).view(length, groups, heads // groups + 2, head_dim)
    q, k, v = qkv[:, :, :-2].reshape(length, heads, head_dim), qkv[:, :, -2], qkv[:, :, -1]
    k, v = (each.repeat_interleave(heads // groups, dim=1) for each in (_rotated(config, k), v))
    scale = config["mup_attn_multiplier"] / head_dim if config["mup_use_scaling"] else head_dim**-0.5
    scores = torch.einsum("qhd,khd->hqk", _rotated(config, q), k) * scale
    seen = torch.ones(length, length, dtype=torch.bool).tril().expand(heads, -1, -1)
    if (int(name.split(".")[2]) + 1) % config["dense_attention_every_n_layers"]:
        seen = seen & seen_blocks(config, length)
    probs = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return _linear(tensors, f"{name}.dense", torch.einsum("hqk,khd->qhd", probs, v).flatten(1))


def seen_blocks(config: dict[str, Any], length: int) -> Tensor:
    """bool [heads, query, key]."""
    heads, stride = config["num_attention_heads"], config["blocksparse_vert_stride"]
    step = 0 if config["blocksparse_homo_head_pattern"] else max(1, stride // heads)
    seen = torch.zeros(heads, length, length, dtype=torch.bool)
    for head in range(heads):
        for query in range(length):
            for key in range(query + 1):
                block, own = (at // config["blocksparse_block_size"] for at in (key, query))
                is_local = own - block < config["blocksparse_num_local_blocks"]
                seen[head, query, key] = is_local or (block + head * step + 1) % stride == 0
    return seen


def _rotated(config: dict[str, Any], x: Tensor) -> Tensor:
    """x [T, heads, D]; halves are the pairs."""
    length, _, dim = x.shape
    frequencies = config["rope_embedding_base"] ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    cos, sin = (f(torch.cat((angles, angles), dim=-1))[:, None] for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
