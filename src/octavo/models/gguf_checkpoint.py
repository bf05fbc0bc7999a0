"""A GGUF file, or the first of a split set, as a `Checkpoint`."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.files.gguf import GGUFFile, TensorInfo
from octavo.files.projector import joined_config
from octavo.models import gguf_config
from octavo.models.projector_checkpoint import ProjectorCheckpoint
from octavo.quant.gguf_types import DEQUANTIZED_TYPES, FLOAT_TYPES, transcode
from octavo.quant.packed import QuantizedWeight

_SPLIT_NAME: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class GGUFCheckpoint:
    """Tensors under the file's names; floats keep the type they have in the file."""

    dtype: Final = None
    naming: Final = "gguf"

    def __init__(self, path: Path, projector: Path | None = None) -> None:
        """`projector`: the file of what the model sees with, whose tensors are not among these."""
        self.source = str(path)
        self._files = _open_split(path)
        tensors: dict[str, tuple[GGUFFile, TensorInfo]] = {}
        for file in self._files:
            for name, info in file.tensors.items():
                if name in tensors:
                    raise CheckpointError(f"{file.path}: the tensor {name!r} is also in another part")
                tensors[name] = (file, info)
        metadata = self._files[0].metadata
        try:
            factors = self._rope_factors(tensors)
            infos = {name: info for name, (_, info) in tensors.items()}
            self.config: dict[str, Any] = gguf_config.hf_config(metadata, infos, factors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error.message}") from None
        self.quantization = _summary(list(infos.values()))
        self._tensors = tensors
        self.projector = None if projector is None else ProjectorCheckpoint(projector)
        if self.projector is not None:
            architecture = str(metadata["general.architecture"])
            self.config = joined_config(self.projector.projector, self.config, architecture, str(path))

    @staticmethod
    def _rope_factors(tensors: dict[str, tuple[GGUFFile, TensorInfo]]) -> dict[str, list[float]]:
        """Takes the tensors of rope factors, which belong to the configuration, out of `tensors`."""
        factors: dict[str, list[float]] = {}
        for name, key in gguf_config.ROPE_TENSORS.items():
            if name in tensors:
                file, info = tensors.pop(name)
                values = transcode(file.data(info), info.type_name, info.shape, info.name)
                if not isinstance(values, Tensor) or values.dim() != 1:
                    raise CheckpointError(f"tensor {name!r}: not a vector of floats")
                factors[key] = values.to(torch.float32).tolist()
        return factors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1].shape

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        info = self._tensors[name][1]
        if info.type_name in DEQUANTIZED_TYPES:
            return math.prod(info.shape) * (float_bytes or torch.float32.itemsize)
        if info.type_name in FLOAT_TYPES and float_bytes is not None:
            return math.prod(info.shape) * float_bytes
        return info.nbytes

    def get(self, name: str) -> Tensor | QuantizedWeight:
        file, info = self._tensors[name]
        try:
            # Of stacked matrices the first two dimensions become one.
            shape = info.shape if len(info.shape) < 3 else (math.prod(info.shape[:-1]), info.shape[-1])
            return transcode(file.data(info), info.type_name, shape, info.name)
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error.message}") from None


def _open_split(path: Path) -> list[GGUFFile]:
    """The file, or if its metadata says that it is one of several, all of them in order."""
    first = GGUFFile(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [first]
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path}: one of {count} parts, yet its name is not of the form NAME-00001-of-{count:05}.gguf"
        )
    parts = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{part}: this part of the model is missing")
    return [first if part == path else GGUFFile(part) for part in parts]


def _summary(infos: list[TensorInfo]) -> str:
    counts = Counter(info.type_name for info in infos if info.type_name not in FLOAT_TYPES)
    return ", ".join(f"{name} x{count}" for name, count in counts.most_common()) or "none"
