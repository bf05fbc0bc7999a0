"""Prompt adapters as PEFT saves them: rows that stand in front of the prompt's, where tokens' embeddings do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.adapters.peft import CONFIG_NAME, open_tensors
from octavo.models.checkpoint import read_json
from octavo.quant.packed import all_finite

#: Of both methods what was trained is saved as rows; what made them is not needed any more.
TENSOR: Final = "prompt_embeddings"
_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PromptFit:
    """What prompt adapters must fit. `width`: of the model's embeddings."""

    width: int
    max_tokens: int


def read_prompt(directory: Path, fit: PromptFit) -> Tensor:
    """The rows, float32 [tokens, width]. Raises CheckpointError, naming the setting or the tensor that does not fit."""
    count = _num_tokens(read_json(directory / CONFIG_NAME), directory, fit.max_tokens)
    file = open_tensors(directory)
    for name in file.names():
        if name != TENSOR:
            raise CheckpointError(f"{directory}: tensor {name!r}: not a part of a prompt adapter that octavo knows")
    if TENSOR not in file:
        raise CheckpointError(f"{directory}: there is no tensor {TENSOR!r}")
    rows, where = file.get(TENSOR), f"{directory}: tensor {TENSOR!r}:"
    if tuple(rows.shape) != (count, fit.width):
        raise CheckpointError(f"{where} its shape is {list(rows.shape)}, not {[count, fit.width]}")
    if rows.dtype not in _FLOATS:
        raise CheckpointError(f"{where} its type is {str(rows.dtype).removeprefix('torch.')}, not one of floats")
    if not all_finite(rows):
        raise CheckpointError(f"{where} it holds NaN or infinite values")
    return rows.float()


def _num_tokens(config: Mapping[str, Any], directory: Path, most: int) -> int:
    where, count = f"{directory}: {CONFIG_NAME}:", config.get("num_virtual_tokens")
    task, parts = config.get("task_type"), config.get("num_transformer_submodules")
    if task not in (None, "CAUSAL_LM"):
        raise CheckpointError(f"{where} task_type is {str(task)[:40]!r}: octavo serves prompt adapters of CAUSAL_LM")
    if parts not in (None, 1):
        raise CheckpointError(f"{where} num_transformer_submodules is {str(parts)[:20]}, and the model is one")
    if type(count) is not int or count < 1:
        raise CheckpointError(f"{where} num_virtual_tokens is not a number of tokens")
    if count > most:
        raise CheckpointError(f"{where} num_virtual_tokens is {count}, and --max-prompt-adapter-token is {most}")
    return count
