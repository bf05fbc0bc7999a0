"""Tensors within one file that is mapped into memory, whatever its format."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Entry:
    """`begin` and `end` count from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


E = TypeVar("E", bound=Entry)


class MappedFile(Generic[E]):
    """Raises `CheckpointError`, naming the file, if it cannot be read. A format fills `_entries`."""

    format: ClassVar[str]
    _entries: dict[str, E]

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                # Private: torch wants memory that counts as writable. Nobody writes to it.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the file is empty"
            raise CheckpointError(f"{path}: cannot be read: {reason}") from None

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entries[name].dtype

    def get(self, name: str) -> Tensor:
        """The tensor as a view of the file; it keeps the mapping alive."""
        entry = self._entries[name]
        if entry.begin == entry.end:  # which torch makes no view of
            return torch.empty(entry.shape, dtype=entry.dtype)
        data = memoryview(self._map)[entry.begin : entry.end]
        if entry.begin % entry.dtype.itemsize:
            data = memoryview(bytearray(data))
        return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged {self.format} file: {why}")
