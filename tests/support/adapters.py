"""Adapters in PEFT's layout, made of random matrices or trained, and the models that they are merged into."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def write_adapter(path: Path, tensors: Mapping[str, Tensor], rank: int, **config: Any) -> Path:
    """`tensors`: by the names of modules' parameters, without PEFT's prefix."""
    path.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": None, **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"base_model.model.{name}": value.contiguous().clone() for name, value in tensors.items()},
        path / "adapter_model.safetensors",
    )
    return path


def write_prompt_adapter(path: Path, rows: Tensor, **config: Any) -> Path:
    """PEFT's prompt tuning: `rows` [tokens, width] in front of each prompt."""
    path.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": len(rows),
        "token_dim": rows.shape[1], "num_transformer_submodules": 1, **config,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"prompt_embeddings": rows.contiguous()}, path / "adapter_model.safetensors")
    return path


def logits_behind(model: Any, rows: Tensor, ids: list[int]) -> Tensor:
    """[len(ids), vocabulary]: what PEFT's models with virtual tokens give behind `rows`."""
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.tensor([ids]))
        logits: Tensor = model(inputs_embeds=torch.cat([rows[None].to(embedded.dtype), embedded], 1)).logits
    return logits[0, len(rows) :].float()


def random_adapter(model: torch.nn.Module, targets: str, rank: int, seed: int) -> Tensors:
    """Matrices for all modules whose names match; a `Conv1D` of GPT-2 counts as the product that it is."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name, module in model.named_modules():
        if re.fullmatch(targets, name):
            rows, columns = module.weight.shape
            if type(module).__name__ == "Conv1D":
                rows, columns = columns, rows
            found[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
            found[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.3
    return found


def merged(model: torch.nn.Module, tensors: Tensors, scaling: float) -> Any:
    """A copy of the model with W + scaling B A for W, in float32."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if f"{name}.lora_A.weight" in tensors:
            delta = scaling * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            module.weight.data += delta.t() if type(module).__name__ == "Conv1D" else delta
    return model


def trained_adapter(directory: Path, path: Path, prompt: list[int], answer: list[int], rank: int = 8) -> Path:
    """An adapter of a Llama's last two layers, trained until it gives `answer` behind `prompt`, in a few steps."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).requires_grad_(False)
    torch.manual_seed(1)
    layers, tensors, given = model.model.layers[-2:], {}, {}
    layers[0].register_forward_pre_hook(lambda module, args, named: given.update(named, x=args[0]), with_kwargs=True)
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        model(ids[:, :-1], use_cache=False)  # what the layers below give does not change
    x = given.pop("x")
    for number, layer in enumerate(layers, len(model.model.layers) - 2):
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
            module = layer.get_submodule(name)
            a = torch.nn.Parameter(torch.randn(rank, module.in_features) * module.in_features**-0.5)
            b = torch.nn.Parameter(torch.zeros(module.out_features, rank))
            tensors |= {
                f"model.layers.{number}.{name}.lora_{kind}.weight": each
                for kind, each in zip("AB", (a, b), strict=True)
            }
            module.register_forward_hook(lambda module, inputs, out, a=a, b=b: out + 2 * inputs[0] @ a.t() @ b.t())
    layers[0]._forward_pre_hooks.clear()
    optimizer = torch.optim.Adam(tensors.values(), lr=1e-2)
    for _ in range(40):
        hidden = x
        for layer in layers:
            hidden = layer(hidden, **given)
        logits = model.lm_head(model.model.norm(hidden))[0, len(prompt) - 1 :]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :])
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return write_adapter(path, {name: value.detach() for name, value in tensors.items()}, rank)
