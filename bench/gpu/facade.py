"""Lets a test that was written for CPU tensors run an operation on a GPU.

A call's CPU tensors are moved to the device with the memory that they are views of, so that aliases, strides and
offsets stay what they are; the function runs there; and all that memory is copied back. Objects of octavo's that hold
tensors are copied with theirs moved, there and back. What lies on the device already is left alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Final

import torch
from torch import Tensor

_DEPTH: Final = 4


class Moved:
    """The tensors of one call."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        #: Address of the memory -> all of it as bytes, here and there.
        self._there: dict[int, tuple[Tensor, Tensor]] = {}
        self._objects: dict[int, tuple[Any, Any]] = {}

    def move(self, value: Any, depth: int = _DEPTH) -> Any:
        """`value` with its CPU tensors on the device."""
        if isinstance(value, Tensor):
            return self._tensor(value) if value.device.type == "cpu" else value
        if isinstance(value, torch.device):
            return self._device if value.type == "cpu" else value
        return self._mapped(value, depth, self.move)

    def copy_back(self) -> None:
        for here, there in self._there.values():
            here.copy_(there)

    def bring_back(self, value: Any, depth: int = _DEPTH) -> Any:
        """A result: tensors on the CPU, views of the caller's own memory where they are that."""
        if isinstance(value, Tensor):
            return self._back(value) if value.device == self._device else value
        return self._mapped(value, depth, self.bring_back)

    def _back(self, value: Tensor) -> Tensor:
        address = value.untyped_storage().data_ptr()
        for here, there in self._there.values():
            if there.untyped_storage().data_ptr() == address:
                return _view(here, value)
        return value.cpu()

    def _tensor(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.nbytes() == 0:
            return value.to(self._device)
        if storage.data_ptr() not in self._there:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._there[storage.data_ptr()] = (here, here.to(self._device, copy=True))
        return _view(self._there[storage.data_ptr()][1], value)

    def _mapped(self, value: Any, depth: int, map_one: Callable[[Any, int], Any]) -> Any:
        """`value` with what it holds mapped, down to some depth."""
        if depth == 0:
            return value
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(map_one(item, depth - 1) for item in value)
        if isinstance(value, dict):
            return {key: map_one(item, depth - 1) for key, item in value.items()}
        if type(value).__module__.startswith("octavo.") and not isinstance(value, type) and not callable(value):
            return self._object(value, depth, map_one)
        return value

    def _object(self, value: Any, depth: int, map_one: Callable[[Any, int], Any]) -> Any:
        """A copy with mapped attributes; the object itself where none of them changes."""
        if id(value) in self._objects:
            return self._objects[id(value)][1]
        names = [field.name for field in fields(value)] if is_dataclass(value) else list(getattr(value, "__dict__", ()))
        old = {name: getattr(value, name) for name in names if hasattr(value, name)}
        new = {name: map_one(item, depth - 1) for name, item in old.items()}
        changed = {name: item for name, item in new.items() if item is not old[name] and not _is_same(item, old[name])}
        if not changed:
            return value
        twin = copy.copy(value)
        for name, item in changed.items():
            object.__setattr__(twin, name, item)
        self._objects[id(value)] = (value, twin)  # the value too, so that its id stays its own
        return twin


def _view(memory: Tensor, like: Tensor) -> Tensor:
    """`memory`, all of a tensor's memory as bytes, seen as `like` sees its own."""
    empty = torch.empty(0, dtype=like.dtype, device=memory.device)
    return empty.set_(memory.untyped_storage(), like.storage_offset(), like.shape, like.stride())


def _is_same(new: Any, old: Any) -> bool:
    """Containers are rebuilt although nothing in them moved."""
    if isinstance(new, list | tuple) and isinstance(old, list | tuple):
        return len(new) == len(old) and all(a is b or _is_same(a, b) for a, b in zip(new, old, strict=True))
    if isinstance(new, dict) and isinstance(old, dict):
        return all(a is b or _is_same(a, b) for a, b in zip(new.values(), old.values(), strict=True))
    return False


def on_device(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function`, with its arguments moved, and moved back."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        moved = Moved(device)
        args, kwargs = moved.move(args), moved.move(kwargs)
        result = function(*args, **kwargs)
        moved.copy_back()
        return moved.bring_back(result)

    return call
