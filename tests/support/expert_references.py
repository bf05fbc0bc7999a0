"""Two families that transformers has no class for, in plain torch, from their published descriptions: for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Large enough for differences to show; norms around one."""
    generator = torch.Generator().manual_seed(3)
    noise = {name: 0.15 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: value + 1 if "norm" in name else value for name, value in noise.items()}


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by the names that the published files have."""
    hidden, heads, kv_heads = (
        config[f"{key}"] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    dim, vocab = hidden // heads, config["vocab_size"]
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for number in range(config["num_hidden_layers"]):
        at = f"model.layers.{number}."
        rows = {"q_proj": heads * dim, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim, "o_proj": hidden}
        shapes |= {f"{at}self_attn.{name}.weight": (n, hidden) for name, n in rows.items()}
        shapes |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= (_deepseek if config["model_type"] == "deepseek" else _arctic)(config, at, number)
    return shapes


def _mlp(at: str, names: tuple[str, str, str], size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = names
    return {
        f"{at}{gate}.weight": (size, hidden),
        f"{at}{up}.weight": (size, hidden),
        f"{at}{down}.weight": (hidden, size),
    }


LLAMA_NAMES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL_NAMES = ("w1", "w3", "w2")


def _deepseek(config: dict[str, Any], at: str, number: int) -> dict[str, tuple[int, ...]]:
    hidden, size = config["hidden_size"], config["moe_intermediate_size"]
    if number < config["first_k_dense_replace"]:
        return _mlp(f"{at}mlp.", LLAMA_NAMES, config["intermediate_size"], hidden)
    shapes: dict[str, tuple[int, ...]] = {f"{at}mlp.gate.weight": (config["n_routed_experts"], hidden)}
    for expert in range(config["n_routed_experts"]):
        shapes |= _mlp(f"{at}mlp.experts.{expert}.", LLAMA_NAMES, size, hidden)
    return shapes | _mlp(f"{at}mlp.shared_experts.", LLAMA_NAMES, size * config["n_shared_experts"], hidden)


def _arctic(config: dict[str, Any], at: str, number: int) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {f"{at}block_sparse_moe.gate.weight": (config["num_local_experts"], hidden)}
    for expert in range(config["num_local_experts"]):
        shapes |= _mlp(f"{at}block_sparse_moe.experts.{expert}.", MIXTRAL_NAMES, config["intermediate_size"], hidden)
    shapes |= {f"{at}residual_layernorm.weight": (hidden,)}
    return shapes | _mlp(f"{at}residual_mlp.", MIXTRAL_NAMES, hidden, hidden)


def logits(config: dict[str, Any], weights: Weights, ids: list[int]) -> Tensor:
    """[T, V] of one prompt."""
    x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
    for number in range(config["num_hidden_layers"]):
        at = f"model.layers.{number}."
        attended = x + _attention(config, weights, at, _norm(weights, f"{at}input_layernorm", x))
        if config["model_type"] == "deepseek":
            x = attended + _deepseek_mlp(
                config, weights, at, number, _norm(weights, f"{at}post_attention_layernorm", attended)
            )
            continue
        # The experts see what went into the layer.
        moe = _experts(
            weights, f"{at}block_sparse_moe.", MIXTRAL_NAMES, _norm(weights, f"{at}post_attention_layernorm", x),
            config["num_experts_per_tok"], normalized=True,
        )  # fmt: skip
        x = (
            attended
            + _gated(weights, f"{at}residual_mlp.", MIXTRAL_NAMES, _norm(weights, f"{at}residual_layernorm", attended))
            + moe
        )
    return _norm(weights, "model.norm", x) @ weights["lm_head.weight"].T


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]


def _attention(config: dict[str, Any], weights: Weights, at: str, x: Tensor) -> Tensor:
    heads, dim = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    q, k, v = (
        (x @ weights[f"{at}self_attn.{name}_proj.weight"].T).view(len(x), -1, dim).transpose(0, 1) for name in "qkv"
    )
    angles = torch.outer(torch.arange(len(x)).float(), config["rope_theta"] ** (-torch.arange(0, dim, 2) / dim))
    cos, sin = angles.cos(), angles.sin()
    q, k = (torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in (each.chunk(2, -1) for each in (q, k)))
    k, v = (each.repeat_interleave(heads // len(each), 0) for each in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(0, 1).flatten(1) @ weights[f"{at}self_attn.o_proj.weight"].T


def _gated(weights: Weights, at: str, names: tuple[str, str, str], x: Tensor) -> Tensor:
    gate, up, down = (weights[f"{at}{name}.weight"] for name in names)
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _experts(weights: Weights, at: str, names: tuple[str, str, str], x: Tensor, top_k: int, normalized: bool) -> Tensor:
    shares, chosen = (x @ weights[f"{at}gate.weight"].T).softmax(-1).topk(top_k)
    if normalized:
        shares = shares / shares.sum(-1, keepdim=True)
    rows = []
    for row, of_row, ids in zip(x, shares, chosen.tolist(), strict=True):
        rows.append(sum(w * _gated(weights, f"{at}experts.{e}.", names, row) for w, e in zip(of_row, ids, strict=True)))
    return torch.stack(rows)


def _deepseek_mlp(config: dict[str, Any], weights: Weights, at: str, number: int, x: Tensor) -> Tensor:
    if number < config["first_k_dense_replace"]:
        return _gated(weights, f"{at}mlp.", LLAMA_NAMES, x)
    experts = _experts(
        weights, f"{at}mlp.", LLAMA_NAMES, x, config["num_experts_per_tok"], normalized=config["norm_topk_prob"]
    )
    return experts + _gated(weights, f"{at}mlp.shared_experts.", LLAMA_NAMES, x)
