"""Tensors whose memory is given back to the device while the host keeps what was in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from octavo.base import host
from octavo.base.errors import DeviceError
from octavo.base.host import gib


class PutAside:
    """The contents of tensors on the host. The tensors stay the objects that they are, views of each other included:
    only their storages are emptied, and filled again by `restore`. Nobody may look at one in between."""

    def __init__(self, tensors: Iterator[torch.Tensor]) -> None:
        """Raises DeviceError where the host has no room; nothing has changed then."""
        found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        storages = [storage for storage in found.values() if storage.nbytes() and storage.resizable()]
        needed, free = sum(storage.nbytes() for storage in storages), host.free_memory()
        if needed > free.num_bytes:
            raise DeviceError(
                f"Sleep level 1 keeps weights of {gib(needed)} on the host, and there are {free}. Level 2 drops them."
            )
        self._kept = [(storage, _on_host(storage)) for storage in storages]
        for storage in storages:
            storage.resize_(0)

    def restore(self) -> None:
        """Fill the storages. One that does not fit raises the device's error; what is left can be tried again."""
        while self._kept:
            storage, values = self._kept[-1]
            storage.resize_(values.nbytes())
            storage.copy_(values)
            self._kept.pop()


def _on_host(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copy = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
    copy.copy_(storage)
    return copy


def tensors_of(packed: Any) -> Iterator[torch.Tensor]:
    """All tensors that packed weights are made of."""
    if isinstance(packed, torch.Tensor):
        yield packed
    elif isinstance(packed, Mapping):
        for value in packed.values():
            yield from tensors_of(value)
    elif isinstance(packed, list | tuple):
        for value in packed:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(packed):
        for field in dataclasses.fields(packed):
            yield from tensors_of(getattr(packed, field.name))
