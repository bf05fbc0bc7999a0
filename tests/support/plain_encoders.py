"""Encoders that transformers has not, in plain torch: random checkpoints under their authors' names, and their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

VOCAB = 96
WIDTH, HEADS, INNER, LAYERS, EXPERTS = 64, 4, 96, 2, 4
_EPS = 1e-12


def saved(directory: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    values = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, value in values.items():
        if "norm" in name.lower() or "emb_ln" in name:
            value.mul_(0.5).add_(1.0 if name.endswith("weight") else 0.0)
    save_file(values, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return values


def _linear(values: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, values[f"{name}.weight"], values.get(f"{name}.bias"))


def _norm(values: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], values[f"{name}.weight"], values[f"{name}.bias"], _EPS)


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (x.view(len(x), HEADS, -1).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return ((scores if bias is None else scores + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)


def make_jina_v2(directory: Path) -> dict[str, Tensor]:
    config = {
        "architectures": ["JinaBertModel"], "model_type": "bert", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER, "type_vocab_size": 2,
        "max_position_embeddings": 130, "position_embedding_type": "alibi", "feed_forward_type": "geglu",
        "layer_norm_eps": _EPS, "hidden_act": "gelu", "emb_pooler": "mean",
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, WIDTH), "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "pooler.dense.weight": (WIDTH, WIDTH), "pooler.dense.bias": (WIDTH,),
    }  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH, WIDTH), f"{layer}.{name}.bias": (WIDTH,)}
        shapes[f"{layer}.mlp.gated_layers.weight"] = (2 * INNER, WIDTH)
        shapes |= {f"{layer}.mlp.wo.weight": (WIDTH, INNER), f"{layer}.mlp.wo.bias": (WIDTH,)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.mlp.layernorm"]
    shapes |= {f"{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")}
    return saved(directory, config, shapes)


def jina_v2_rows(values: dict[str, Tensor], ids: list[int]) -> Tensor:
    x = values["embeddings.word_embeddings.weight"][ids] + values["embeddings.token_type_embeddings.weight"][0]
    x = _norm(values, "embeddings.LayerNorm", x)
    at = torch.arange(len(ids))
    slopes = 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)
    bias = -slopes[:, None, None] * (at[:, None] - at[None]).abs()
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        q, k, v = (_linear(values, f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
        attended = _linear(values, f"{layer}.attention.output.dense", _attended(q, k, v, bias))
        x = _norm(values, f"{layer}.attention.output.LayerNorm", x + attended)
        gate, up = _linear(values, f"{layer}.mlp.gated_layers", x).chunk(2, dim=-1)
        x = _norm(values, f"{layer}.mlp.layernorm", x + _linear(values, f"{layer}.mlp.wo", F.gelu(gate) * up))
    return x


def make_nomic_moe(directory: Path) -> dict[str, Tensor]:
    config = {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": VOCAB, "n_embd": WIDTH,
        "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 130, "type_vocab_size": 1,
        "activation_function": "gelu", "layer_norm_epsilon": _EPS, "qkv_proj_bias": True, "mlp_fc1_bias": True,
        "mlp_fc2_bias": True, "rotary_emb_base": 10000, "rotary_emb_fraction": 1.0, "prenorm": False,
        "moe_every_n_layers": 2, "num_experts": EXPERTS, "moe_top_k": 2, "moe_normalize_expert_weights": False,
        "expert_choice_router": False, "num_shared_experts": 0, "causal": False,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, WIDTH), "embeddings.token_type_embeddings.weight": (1, WIDTH),
    }  # fmt: skip
    norms = ["emb_ln"]
    for number in range(LAYERS):
        layer = f"encoder.layers.{number}"
        shapes |= {f"{layer}.attn.Wqkv.weight": (3 * WIDTH, WIDTH), f"{layer}.attn.Wqkv.bias": (3 * WIDTH,)}
        shapes |= {f"{layer}.attn.out_proj.weight": (WIDTH, WIDTH), f"{layer}.attn.out_proj.bias": (WIDTH,)}
        if number % 2:
            shapes[f"{layer}.mlp.router.layer.weight"] = (EXPERTS, WIDTH)
            shapes |= {f"{layer}.mlp.experts.mlp.{name}": (EXPERTS * INNER, WIDTH) for name in ("w1", "w2")}
            shapes[f"{layer}.mlp.experts.bias"] = (WIDTH,)
        else:
            shapes |= {f"{layer}.mlp.fc1.weight": (INNER, WIDTH), f"{layer}.mlp.fc1.bias": (INNER,)}
            shapes |= {f"{layer}.mlp.fc2.weight": (WIDTH, INNER), f"{layer}.mlp.fc2.bias": (WIDTH,)}
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
    shapes |= {f"{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")}
    return saved(directory, config, shapes)


def nomic_moe_rows(values: dict[str, Tensor], ids: list[int]) -> Tensor:
    x = values["embeddings.word_embeddings.weight"][ids] + values["embeddings.token_type_embeddings.weight"][0]
    x = _norm(values, "emb_ln", x)
    half = WIDTH // HEADS // 2
    angles = torch.outer(torch.arange(len(ids)).float(), 10000.0 ** (-torch.arange(half) / half))[:, None]
    cos, sin = angles.cos(), angles.sin()

    def turned(part: Tensor) -> Tensor:
        first, second = part.view(len(ids), HEADS, -1).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(1)

    for number in range(LAYERS):
        layer = f"encoder.layers.{number}"
        q, k, v = _linear(values, f"{layer}.attn.Wqkv", x).chunk(3, dim=-1)
        attended = _linear(values, f"{layer}.attn.out_proj", _attended(turned(q), turned(k), v))
        x = _norm(values, f"{layer}.norm1", x + attended)
        if number % 2:
            made = _experts(values, f"{layer}.mlp", x)
        else:
            made = _linear(values, f"{layer}.mlp.fc2", F.gelu(_linear(values, f"{layer}.mlp.fc1", x)))
        x = _norm(values, f"{layer}.norm2", x + made)
    return x


def _experts(values: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weights, chosen = _linear(values, f"{name}.router.layer", x).softmax(-1).topk(2)
    up, down = (values[f"{name}.experts.mlp.{each}"].view(EXPERTS, INNER, WIDTH) for each in ("w1", "w2"))
    made = torch.zeros(len(x), 2, WIDTH)
    for place in range(2):
        inside = F.gelu(torch.einsum("tw,tiw->ti", x, up[chosen[:, place]]))
        made[:, place] = torch.einsum("ti,tiw->tw", inside, down[chosen[:, place]])
    return (weights[..., None] * made).sum(1) + values[f"{name}.experts.bias"]
