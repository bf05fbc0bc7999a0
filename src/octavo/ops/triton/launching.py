"""Launches of kernels that are compiled: a fraction of what Triton's dispatch takes of the host's time.

Triton looks at every argument of every launch, twice, builds a text of what it has found and looks the kernel up by it.
Here the same facts make a short key, pointers go to the driver as numbers, and the compiled kernel is called directly.
What is new, or not understood, goes the way of Triton.

Kernels that follow each other in every step of decoding are chained: where the GPU can, each is launched while the one
before still computes (programmatic dependent launch), and waits for its end before it reads or writes anything, by
`wait_turn`. So what it waits for has waited too, and all is done in order. What is launched otherwise waits by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import NoneType
from typing import Any, Final

import torch
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import triton
from octavo.ops.triton.switches import is_on
from triton import knobs

__all__ = ["jit", "wait_turn"]

#: Versions in which compiled kernels are called as it is done here.
_VERSIONS: Final = ((3, 4), (3, 7))
_KNOWN: Final = _VERSIONS[0] <= tuple(map(int, triton.__version__.split(".")[:2])) < _VERSIONS[1]
#: Types of which Triton looks at the type alone.
_PLAIN: Final = frozenset((float, bool, NoneType))


@dataclass(slots=True, frozen=True)
class _Kept:
    """A compiled kernel, and what follows its positional arguments."""

    run: Callable[..., None]
    function: int
    metadata: Any
    device: int
    rest: tuple[Any, ...]


class Kernel(JITFunction):  # type: ignore[misc]
    """Called as any of Triton's kernels; a grid is a tuple, and what is given by name are constants and options."""

    def __init__(self, function: Callable[..., Any], chained: bool = False, **options: Any) -> None:
        super().__init__(function, **options)
        self._kept: dict[tuple[Any, ...], _Kept] = {}
        self._is_chained = chained

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
        if self._is_chained and _can_chain(driver.active.get_current_device()):
            named["CHAINED"] = named["launch_pdl"] = True
        key: list[Any] = [*named, *named.values()]
        values: list[Any] = []
        places = 0
        for arg in args:
            kind = type(arg)
            if kind is torch.Tensor:
                place = arg.data_ptr()
                places |= place
                values.append(place)
                key.append(arg.dtype)
            elif kind is int:
                values.append(arg)
                key.append(_class_of(arg))
            elif kind in _PLAIN:
                values.append(arg)
                key.append(kind)
            else:
                self.run(*args, grid=grid, warmup=False, **named)
                return
        if places & 15:  # nearly all lie at multiples of 16, for which kernels are compiled apart
            key += [type(arg) is torch.Tensor and arg.data_ptr() & 15 == 0 for arg in args]
        found = tuple(key)
        kept = self._kept.get(found)
        if kept is None:
            compiled = self.run(*args, grid=grid, warmup=False, **named)
            if _KNOWN and not _has_hooks():
                self._kept[found] = self._made(compiled, len(args), named)
            return
        grid = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
        stream = driver.active.get_current_stream(kept.device)
        kept.run(*grid, stream, kept.function, kept.metadata, None, None, None, *values, *kept.rest)

    def _made(self, compiled: Any, num_args: int, named: dict[str, Any]) -> _Kept:
        rest = list(self.signature.parameters.values())[num_args:]
        constants = tuple(named.get(parameter.name, parameter.default) for parameter in rest)
        device = driver.active.get_current_device()
        return _Kept(compiled.run, compiled.function, compiled.packed_metadata, device, constants)


def jit(function: Callable[..., Any] | None = None, *, chained: bool = False, **options: Any) -> Any:
    """`triton.jit` of what is launched often. `chained`: it has a parameter `CHAINED: tl.constexpr = False`, the last,
    which is for `wait_turn` and which no caller gives."""
    if function is None:
        return partial(jit, chained=chained, **options)
    return triton.jit(function, **options) if knobs.runtime.interpret else Kernel(function, chained, **options)


@triton.jit
def wait_turn(CHAINED: tl.constexpr):
    """Let the next kernel be launched, and wait for the one before."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


@cache
def _can_chain(device: int) -> bool:
    return is_on("dependent_launch") and driver.active.get_current_target().arch >= 90


def _class_of(value: int) -> str:
    """What a kernel may be compiled for: 1, multiples of 16, and the width that the value needs."""
    if value == 1:
        return "1"
    width = "i32" if -(1 << 31) <= value < 1 << 31 else "i64" if value < 1 << 63 else "u64"
    return width if value & 15 else width + ", divisible"


def _has_hooks() -> bool:
    """Whether a profiler wants to know of each launch."""
    hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
    return any(bool(getattr(hook, "calls", hook)) for hook in hooks)
