"""Where weights come from: a directory of safetensors files, a GGUF file, or a random generator.

Each answers under its own names; `layout` finds the tensors of a model in them.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.params import TensorDecl
from octavo.models.safetensors_file import SafetensorsFile
from octavo.quant.packed import QuantizedWeight

logger = logging.getLogger("octavo.models")

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
MAX_JSON_BYTES: Final = 64 << 20
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Size of random weights: large enough to be no special case, small enough that no activation grows.
_DUMMY_BOUND: Final = 0.03
_CPU: Final = torch.device("cpu")
_NAMES_LISTED: Final = 10


#: hf, gguf: as files of that kind have them for the family. declared: as the model's blocks do.
Naming = Literal["hf", "gguf", "declared"]


class Checkpoint(Protocol):
    """Named tensors and the configuration that says what they are. All methods raise `CheckpointError`."""

    @property
    def source(self) -> str:
        """The file or directory, for messages."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration in Hugging Face's form."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What the checkpoint says its floats are; None: each tensor keeps its type."""

    @property
    def naming(self) -> Naming:
        """Whose names and layouts its tensors have."""

    @property
    def quantization(self) -> str:
        """`none`, or a summary of the formats for the start-up report."""

    def names(self) -> list[str]:
        """All tensors that a model must take."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        """Bytes that the tensor takes at least when it is loaded; nothing is read for it. `float_bytes`: of a value of
        a float tensor; None: as in the checkpoint."""

    def get(self, name: str) -> Tensor | QuantizedWeight:
        """The tensor: a matrix of an integer format as `QuantizedWeight`, all else as a float tensor that may be a
        view of the file and must not be written to. Stacked matrices may come as one, the first two dimensions folded.
        """


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def config_dtype(config: dict[str, Any]) -> torch.dtype | None:
    name = config.get("dtype") or config.get("torch_dtype")
    text = config.get("text_config")
    if name is None and isinstance(text, dict):  # of a model that also sees
        return config_dtype(text)
    return _DTYPES.get(name) if isinstance(name, str) else None


def complaints(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What is wrong with the names of a checkpoint's tensors; empty: nothing."""
    return "; ".join(
        f"{len(names)} {what} tensor{'s' if len(names) > 1 else ''}: {listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    )


def listed(names: Sequence[str]) -> str:
    """The first of many names, for messages."""
    return ", ".join(names[:_NAMES_LISTED]) + (", ..." if len(names) > _NAMES_LISTED else "")


class TensorFile(Protocol):
    """`SafetensorsFile` and those like it."""

    @property
    def path(self) -> Path: ...

    def names(self) -> list[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def get(self, name: str) -> Tensor: ...


def read_index(index: Path) -> dict[str, str]:
    """Which file beside an index holds each tensor. Raises CheckpointError unless all of them are there."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(value, str) for value in placed.values()):
        raise CheckpointError(f"{index}: weight_map is not a mapping of tensors to files")
    for file_name in sorted(set(placed.values())):
        if Path(file_name).name != file_name:
            raise CheckpointError(f"{index}: {file_name!r} is not the name of a file beside it")
        if not (index.parent / file_name).is_file():
            raise CheckpointError(f"{index.parent / file_name}: this shard is missing")
    return placed


class StoredCheckpoint:
    """Files of tensors under Hugging Face's names, beside their configuration."""

    quantization: Final = "none"
    naming: Final = "hf"

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        files: Iterable[TensorFile],
        name_of: Callable[[str], str | None] = lambda stored: stored,
    ) -> None:
        """`name_of`: Hugging Face's name of what is stored under another; None: it is no weight."""
        self.source = str(directory)
        self.config = config
        self.dtype = config_dtype(config)
        #: What files of safetensors say beside their tensors.
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, tuple[TensorFile, str]] = {}  # name -> file, and the name in it
        for file in files:
            if isinstance(file, SafetensorsFile):
                self.metadata |= file.metadata
            for stored in file.names():
                name = name_of(stored)
                if name in self._tensors:
                    other = self._tensors[name][0].path
                    raise CheckpointError(f"{file.path}: the tensor {stored!r} is also in {other}")
                if name is not None:
                    self._tensors[name] = file, stored

    def add(self, other: StoredCheckpoint, name_of: Callable[[str], str | None]) -> None:
        """Take the tensors of another that are not among its own. `name_of`: their names here; None: they are not
        taken."""
        for name, place in other._tensors.items():
            if (own := name_of(name)) is not None:
                self._tensors.setdefault(own, place)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._tensors[name]
        return file.shape(stored)

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        file, stored = self._tensors[name]
        return math.prod(file.shape(stored)) * (float_bytes or file.dtype(stored).itemsize)

    def raw(self, name: str) -> Tensor:
        """The tensor as it is in its file, of any type: a view."""
        file, stored = self._tensors[name]
        return file.get(stored)

    def get(self, name: str) -> Tensor:
        tensor = self.raw(name)
        if tensor.dtype not in _DTYPES.values():
            file, stored = self._tensors[name]
            raise CheckpointError(f"{file.path}: tensor {stored!r}: {tensor.dtype} is not supported")
        return tensor


class SafetensorsCheckpoint(StoredCheckpoint):
    """A directory with config.json and one safetensors file, or several with an index."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, read_json(directory / "config.json"), _safetensors_files(directory))


def _safetensors_files(directory: Path) -> list[SafetensorsFile]:
    single, index = directory / SINGLE_NAME, directory / INDEX_NAME
    if not single.is_file() and not index.is_file():
        # Tools of quantization call the one file after themselves.
        others = list(directory.glob("*.safetensors"))
        single = others[0] if len(others) == 1 else single
    if single.is_file():
        return [SafetensorsFile(single)]
    if not index.is_file():
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
        hint = "; --load-format pt reads the pickled weights" if pickled else ""
        raise CheckpointError(f"{directory}: neither {SINGLE_NAME} nor {INDEX_NAME} is there{hint}")
    placed = read_index(index)
    files = {file_name: SafetensorsFile(directory / file_name) for file_name in sorted(set(placed.values()))}
    for name, file_name in placed.items():
        if name not in files[file_name]:
            raise CheckpointError(f"{directory / file_name}: the tensor {name!r} is not in it, yet in the index")
    return list(files.values())


class DummyCheckpoint:
    """Random weights for the tensors declared: the same for the same seed and kind of device, in whatever order."""

    quantization: Final = "none"
    naming: Final = "declared"

    def __init__(
        self,
        tensors: Mapping[str, TensorDecl],
        config: dict[str, Any],
        source: str,
        seed: int,
        device: torch.device = _CPU,
    ) -> None:
        self._device = device
        self.source = source
        self.config = config
        self.dtype = config_dtype(config) or torch.bfloat16
        self._seed = seed
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        return math.prod(self.shape(name)) * (float_bytes or self.dtype.itemsize)

    def get(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        values = torch.empty(tensor.shape, dtype=self.dtype, device=self._device)
        if tensor.role == "norm":
            return values.fill_(1.0)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        return values.uniform_(-_DUMMY_BOUND, _DUMMY_BOUND, generator=generator)
