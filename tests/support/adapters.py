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
