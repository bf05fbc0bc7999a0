"""Checkpoints that hold adapters for several tasks beside their tensors, as the authors' files of Jina's embeddings v3
do: they are read with those of one task added."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import StoredCheckpoint
from octavo.quant.packed import QuantizedWeight, as_floats

_TASKS: Final = "lora_adaptations"
#: Not in files: the task that is served.
_TASK: Final = "lora_adaptation"
_WHOLE: Final = ".parametrizations.weight.original"
_PARTS: Final = (".parametrizations.weight.0.lora_A", ".parametrizations.weight.0.lora_B")
_ARCHITECTURE: Final = "JinaEmbeddingsV3Model"


def has_task(config: dict[str, Any]) -> bool:
    """Whether a task was chosen of a checkpoint that has several."""
    return bool(config.get(_TASKS)) and config.get(_TASK) is not None


class TaskCheckpoint:
    """`X.parametrizations.weight.original` [N, K] is `X.weight`, with the task's part of `lora_A` and `lora_B` added:
    of matrices [tasks, r, K] and [tasks, N, r], of tables [tasks, N, r] and [tasks, r, K]."""

    naming: Final = "hf"
    quantization: Final = "none"

    def __init__(self, inner: StoredCheckpoint) -> None:
        """Raises CheckpointError for a task that there is not."""
        config, self.source, self.dtype = inner.config, inner.source, inner.dtype
        tasks = config[_TASKS]
        if not isinstance(tasks, list) or config[_TASK] not in tasks:
            raise CheckpointError(f"{self.source}: {_TASK} is one of {tasks}, not {str(config[_TASK])[:80]!r}")
        alpha, rank = config.get("lora_alpha", 1), config.get("lora_rank", 4)
        if not all(isinstance(each, int | float) and each > 0 for each in (alpha, rank)):
            raise CheckpointError(f"{self.source}: lora_alpha and lora_rank are not positive numbers")
        self._inner, self._task, self._scale = inner, tasks.index(config[_TASK]), alpha / rank
        self._names = frozenset(inner.names())
        self.config = {**config, "architectures": [_ARCHITECTURE], _TASKS: None}

    def names(self) -> list[str]:
        names = (name for name in self._inner.names() if not name.endswith(_PARTS))
        return [name.removesuffix(_WHOLE) + ".weight" if name.endswith(_WHOLE) else name for name in names]

    def _stem(self, name: str) -> str | None:
        """Of a tensor with adapters; None: it has none."""
        stem = name.removesuffix(".weight")
        return stem if stem + _WHOLE in self._names else None

    def shape(self, name: str) -> tuple[int, ...]:
        stem = self._stem(name)
        return self._inner.shape(name if stem is None else stem + _WHOLE)

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        stem = self._stem(name)
        return self._inner.nbytes(name if stem is None else stem + _WHOLE, float_bytes)

    def get(self, name: str) -> Tensor | QuantizedWeight:
        stem = self._stem(name)
        if stem is None:
            return self._inner.get(name)
        whole = as_floats(self._inner.get(stem + _WHOLE))
        first, second = (as_floats(self._inner.get(stem + part)) for part in _PARTS)
        if first.dim() != 3 or second.dim() != 3 or not self._task < min(len(first), len(second)):
            raise CheckpointError(f"{self.source}: tensor {name!r}: its adapters are not those of all tasks")
        a, b = first[self._task].to(torch.float32), second[self._task].to(torch.float32)
        if (a.shape[0], b.shape[1]) != tuple(whole.shape):  # a matrix, and not a table
            a, b = b, a
        if (a.shape[0], b.shape[1]) != tuple(whole.shape) or a.shape[1] != b.shape[0]:
            raise CheckpointError(f"{self.source}: tensor {name!r} and its adapters do not fit together")
        made: Tensor = whole.to(torch.float32) + self._scale * (a @ b)
        return made.to(whole.dtype)
