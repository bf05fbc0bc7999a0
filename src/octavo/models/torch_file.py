"""Reads one file of torch's (`*.bin`, `*.pt`, `*.pth`): a pickle of named tensors, of which no code is run.

torch unpickles with an allow list that holds what tensors are made of and nothing else. The data of files of torch 1.6
and later stay mapped; older ones are read whole.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError

#: Under which training programs keep the weights.
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")


class TorchFile:
    """As `SafetensorsFile`. Raises `CheckpointError`, naming file and tensor, for a file that is damaged or hostile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _tensors(_load(path), path)

    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def get(self, name: str) -> Tensor:
        return self._tensors[name].contiguous()


def _load(path: Path) -> Any:
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            _check_archive(path)
        elif path.open("rb").read(2) == b"PK":
            raise CheckpointError(f"{path}: damaged: the archive has no directory at its end; truncated?")
        with warnings.catch_warnings(action="ignore"):  # about how it was pickled
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(error)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: damaged: not tensors of torch: {reason}") from None


def _refusal(error: Exception) -> str:
    """torch's advice would be to run what is in the file."""
    text = " ".join(str(error).split())
    _, found, named = text.partition("GLOBAL ")
    what = f" It names {named.split(' ', 1)[0]}." if found else ""
    if named.startswith("torchao."):
        what += " With torchao's own code, save it again as safetensors (safe_serialization, torchao 0.14 or newer)."
    return f"not loaded: it is damaged, or holds more than tensors; nothing of it was run.{what}"


def _check_archive(path: Path) -> None:
    """torch never packs what it writes: a packed member is somebody's trap, that a few bytes fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    size = path.stat().st_size
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise CheckpointError(
                f"{path}: its member {member.filename[:100]!r} is compressed, which torch never does."
            )
        if member.header_offset + member.file_size > size:
            raise CheckpointError(f"{path}: damaged: its member {member.filename[:100]!r} passes the end; truncated?")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path}: damaged: its members overlap.")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: it holds {type(content).__name__}, not named tensors.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {str(name)[:100]!r} is of type {type(value).__name__}, not a tensor.")
        if value.layout != torch.strided or value.is_quantized or value.numel() == 0:
            raise CheckpointError(f"{path}: tensor {name!r} is empty, sparse or of torch's quantized types.")
    return dict(content)
