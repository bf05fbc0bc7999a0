"""The Ops seam: a frozen table of callables, bound once, that layers and the sampler keep.

Signatures, shapes and meaning of each operation stand in `reference` and `reference_sampling`. Common to all
implementations: outputs are allocated by the caller, activations are contiguous float32, and a row's result does
not depend on the other rows of the call, on the number of threads, or on how a prompt was cut into steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from octavo.ops import reference, reference_sampling
from octavo.ops.layer_stack import LayerStack


class LinearWeight(Protocol):
    """A packed matrix, opaque but for these. What one table packs only that table can read."""

    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def kind(self) -> str: ...


class EmbeddingWeight(Protocol):
    """A packed embedding table, opaque."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Ops:
    """The operations of a step. `implementations` names who does each: "reference" means slow."""

    pack_linear: Callable[..., LinearWeight]  # (weight, bias=None)
    pack_linear_many: Callable[..., LinearWeight]  # (weights, biases=None)
    linear: Callable[..., None]  # (out, x, w)
    pack_embedding: Callable[..., EmbeddingWeight]  # (weight)
    tied_embedding: Callable[..., EmbeddingWeight]  # (linear_weight): the same packed copy
    embedding: Callable[..., None]  # (out, ids, w, scale=1.0)
    rms_norm: Callable[[Tensor, Tensor, Tensor, float], None]  # (out, x, weight, eps)
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], None]  # (out, residual, x, weight, eps)
    add_: Callable[[Tensor, Tensor], None]  # (residual, x)
    act_mul: Callable[[Tensor, Tensor, str], None]  # (out, gate_up, kind)
    rope_kv_write: Callable[..., None]
    attention: Callable[..., None]
    layer_stack: Callable[..., LayerStack]  # (ops, shape, layers)
    kv_cache_shapes: Callable[[int, int, int, int], tuple[tuple[int, ...], tuple[int, ...]]]
    forbid: Callable[[Tensor, Tensor, Tensor], None]  # (logits, rows, masks)
    sample: Callable[..., None]  # (logits, batch, out_ids, out_flags)
    logprobs: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor]]  # (logits, ids, k)
    implementations: dict[str, str] = field(default_factory=dict)


#: Operations that share a private format are taken from one implementation or not at all.
_GROUPS: tuple[tuple[str, ...], ...] = (
    ("pack_linear", "pack_linear_many", "linear", "pack_embedding", "tied_embedding", "embedding"),
)
#: Taken where all that it is made of is taken.
_COMPOSED: dict[str, tuple[str, ...]] = {
    "layer_stack": ("linear", "rms_norm", "add_rms_norm", "act_mul", "rope_kv_write", "attention", "kv_cache_shapes"),
}
_REFERENCE_MODULES: dict[str, Any] = dict.fromkeys(("forbid", "sample", "logprobs"), reference_sampling)
_NAMES = tuple(name for name in Ops.__dataclass_fields__ if name != "implementations")
#: Modules with the native operations of each device, in `octavo.ops`.
_NATIVE: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "cpu_linear", "cpu_layers")}


def bind(device: str = "cpu", impl: Literal["auto", "reference"] = "auto") -> Ops:
    """The table for `device`. "auto" takes each native operation there is; "reference" takes none.

    Raises KeyError for an unknown device.
    """
    chosen: dict[str, Any] = {name: getattr(_REFERENCE_MODULES.get(name, reference), name) for name in _NAMES}
    names = dict.fromkeys(_NAMES, "reference")
    modules = _NATIVE[device] if impl == "auto" else ()
    native = _native_operations(modules)
    for group in (*_GROUPS, *((name,) for name in _NAMES)):
        if all(name in native for name in (*group, *_COMPOSED.get(group[0], ()))):
            chosen |= {name: native[name] for name in group}
            names |= dict.fromkeys(group, device)
    return Ops(**chosen, implementations=names)


def _native_operations(modules: tuple[str, ...]) -> dict[str, Any]:
    """Whatever the modules define of the table. A module whose native part was not built defines nothing."""
    found: dict[str, Any] = {}
    for module_name in modules:
        try:
            module = importlib.import_module(f"octavo.ops.{module_name}")
        except ImportError:
            continue
        found |= {name: getattr(module, name) for name in _NAMES if hasattr(module, name)}
    return found
