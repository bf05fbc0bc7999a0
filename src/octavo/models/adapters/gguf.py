"""Adapters as llama.cpp saves them: a .gguf file with the tensors of a model's file, as .lora_a and .lora_b."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from octavo.base.errors import CheckpointError
from octavo.files.gguf import GGUFFile
from octavo.models.adapters.parts import AdapterFiles
from octavo.quant.gguf_types import transcode
from octavo.quant.packed import as_floats

_SUFFIXES: Final = {".lora_a": "a", ".lora_b": "b"}
_TABLE: Final = "token_embd.weight"


def read_gguf(path: Path) -> AdapterFiles:
    """Raises CheckpointError for files that are damaged, or of an adapter that is not supported."""
    file = GGUFFile(path)
    metadata = file.metadata
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise CheckpointError(f"{path}: not a LoRA adapter: general.type or adapter.type say otherwise")
    if metadata.get("adapter.alora.invocation_tokens"):
        raise CheckpointError(f"{path}: adapter.alora.invocation_tokens is not supported")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: adapter.lora.alpha is not a number")
    files = AdapterFiles(str(path), is_gguf=True)
    for name, info in file.tensors.items():
        suffix = name[-len(".lora_a") :]
        if suffix not in _SUFFIXES or len(info.shape) not in (2, 3):
            raise CheckpointError(f"{path}: tensor {name!r}: not a part of a LoRA adapter that octavo knows")
        values = as_floats(transcode(file.data(info), info.type_name, info.shape, info.name))
        module = files.module(name.removesuffix(suffix))
        module.is_embedding = name.startswith(_TABLE)
        if suffix == ".lora_a" and module.is_embedding:
            values = values.t().contiguous()  # a row for each token
        module.is_stack |= len(info.shape) == 3
        setattr(module, _SUFFIXES[suffix], (name, values))
        if suffix == ".lora_b" and alpha:
            module.scaling = alpha / values.shape[-1]
    if not files.modules:
        raise CheckpointError(f"{path}: the adapter has no tensors")
    return files
