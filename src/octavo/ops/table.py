"""The Ops seam: a frozen table of callables, bound once, that layers and the sampler keep.

Signatures, shapes and meaning of each operation stand in `reference` and the modules that it names. Common to all
implementations: outputs are allocated by the caller, activations are contiguous and of the table's type, logits
float32. A row's result does not depend on the other rows of the call, on the number of threads, or on how a prompt was
cut into steps: on a CPU always, on a GPU where `batch_invariant` was asked for.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from octavo.base.native import has_native_cpu
from octavo.ops import reference, reference_attention, reference_sampling, reference_states, reference_streams
from octavo.ops.lora import LoraBank
from octavo.ops.operands import Heads, Latent
from octavo.ops.operations import GateKind
from octavo.ops.run import Runner

logger = logging.getLogger("octavo.ops")

AttentionBackend = Literal["auto", "triton", "flashinfer"]


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
    pack_output: Callable[..., LinearWeight]  # (weight, bias=None): of the output layer
    #: (weight): the same for the packers, whose products may be rounded where they are then faster
    fixed_point: Callable[[Tensor], Any]
    linear: Callable[..., None]  # (out, x, w)
    pack_embedding: Callable[..., EmbeddingWeight]  # (weight)
    tied_embedding: Callable[..., EmbeddingWeight]  # (linear_weight): the same packed copy
    embedding: Callable[..., None]  # (out, ids, w, scale=1.0)
    lora_bank: Callable[..., LoraBank]  # (columns, K, num_slots, max_rank, dtype): columns of each part of the product
    lora_delta: Callable[..., None]  # (out, x, slots, bank)
    rms_norm: Callable[[Tensor, Tensor, Tensor, float], None]  # (out, x, weight, eps)
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], None]  # (out, residual, x, weight, eps)
    layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor | None, float], None]  # (out, x, weight, bias, eps)
    add_layer_norm: Callable[..., None]  # (out, residual, x, weight, bias, eps)
    norm_parts_: Callable[..., None]  # (x, first, count, width, weight, bias, eps, kind)
    add_: Callable[[Tensor, Tensor], None]  # (residual, x)
    add_gated_: Callable[[Tensor, Tensor, Tensor], None]  # (residual, x, gates)
    act_mul: Callable[[Tensor, Tensor, str], None]  # (out, gate_up, kind)
    act: Callable[..., None]  # (out, x, kind, parameters=None)
    pack_experts: Callable[..., Any]  # (experts): of each the arguments of pack_linear_many
    pack_heads: Callable[..., Any]  # (heads): the same, for head_linear
    route: Callable[..., None]  # (ids, weights, scores, routing, bias=None, scales=None)
    experts: Callable[..., None]  # see experts.grouped_experts
    clip_: Callable[[Tensor, float], None]  # (x, limit)
    multiply_: Callable[[Tensor, Tensor], None]  # (x, factors)
    match_rms_: Callable[[Tensor, Tensor], None]  # (x, to)
    cut_gates_: Callable[[Tensor, int, float], None]  # (x, width, deviations)
    act_times: Callable[[Tensor, Tensor, Tensor, int, str], None]  # (out, x, y, first, kind)
    altup_predict_: Callable[..., None]  # (streams, scores, coefs)
    altup_correct_: Callable[..., None]  # (out, streams, activated, scores, coefs, active, scale=None)
    rope_kv_write: Callable[..., None]
    attention: Callable[..., None]
    causal_conv: Callable[..., None]  # (out, x, weight, bias, state, slots, positions, query_start_loc, gated)
    selective_scan: Callable[..., None]  # see reference_states
    gated_delta: Callable[..., None]  # see reference_states
    gate_: Callable[[Tensor, Tensor, GateKind], None]  # (x, gates, kind)
    head_linear: Callable[[Tensor, Tensor, Any], None]  # (out, x, weights): what pack_heads packed
    latent_write: Callable[..., None]
    latent_attention: Callable[..., None]
    latent_cache_shape: Callable[..., tuple[int, ...]]  # (num_blocks, block_size, latent, dtype)
    program_runner: Callable[..., Runner]  # (ops, program, weights)
    attention_planner: Callable[..., Any]  # (heads, torch_device, dtype): see step.NoPlanner
    kv_cache_shapes: Callable[..., tuple[tuple[int, ...], tuple[int, ...]]]  # see reference_attention
    soft_cap_: Callable[[Tensor, float], None]  # (logits, cap)
    resolve_ids: Callable[[Tensor, Tensor], None]  # (ids, last_ids)
    forbid: Callable[[Tensor, Tensor, Tensor], None]  # (logits, rows, masks)
    sample: Callable[..., None]  # (logits, batch, out_ids, out_flags)
    logprobs: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor]]  # (logits, ids, k)
    #: (vocab_size, torch_device): counts for penalties that stay on the device; None: they come with the batch.
    penalty_counts: Callable[..., Any] | None = None
    #: Of activations; weights that no operation packs (norms, tables of rotations) stay float32.
    activation_dtype: torch.dtype = torch.float32
    torch_device: torch.device = torch.device("cpu")
    to_device: Callable[[Tensor], Tensor] = lambda tensor: tensor
    implementations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a table is made for, where it is not the CPU's."""

    torch_device: torch.device
    activation_dtype: torch.dtype
    to_device: Callable[[Tensor], Tensor]
    quantization: Literal[None, "fp8", "int8"] = None  # of matrices whose weights come unquantized
    batch_invariant: bool = False
    attention_backend: AttentionBackend = "auto"  # of prompts


_KV_OPERATIONS = ("kv_cache_shapes", "rope_kv_write", "attention", "attention_planner")
_LATENT_OPERATIONS = ("latent_cache_shape", "latent_write", "latent_attention")
_STATE_OPERATIONS = ("causal_conv", "selective_scan", "gated_delta")
#: Operations that share a private format are taken from one implementation or not at all.
_GROUPS: tuple[tuple[str, ...], ...] = (
    (
        "pack_linear",
        "pack_linear_many",
        "pack_output",
        "fixed_point",
        "linear",
        "pack_embedding",
        "tied_embedding",
        "embedding",
        "pack_experts",
        "pack_heads",
        "experts",
        "head_linear",
    ),
    _KV_OPERATIONS,
    _LATENT_OPERATIONS,
    ("lora_bank", "lora_delta"),
)
_STREAM_OPERATIONS = ("multiply_", "match_rms_", "cut_gates_", "act_times", "altup_predict_", "altup_correct_")
#: Taken where all that it is made of is taken.
_COMPOSED: dict[str, tuple[str, ...]] = {
    "program_runner": (
        "linear", "embedding", "rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "norm_parts_", "add_",
        "add_gated_", "act_mul", "act", "route", "experts", "clip_", "rope_kv_write", "attention", "kv_cache_shapes",
        "head_linear", "latent_write", "latent_attention", "causal_conv", "selective_scan", "gated_delta", "gate_",
        "lora_delta",
        *_STREAM_OPERATIONS,
    ),
}  # fmt: skip
_REFERENCE_MODULES: dict[str, Any] = {
    **dict.fromkeys((*_KV_OPERATIONS, *_LATENT_OPERATIONS), reference_attention),
    **dict.fromkeys(_STATE_OPERATIONS, reference_states),
    **dict.fromkeys(("forbid", "sample", "logprobs"), reference_sampling),
    **dict.fromkeys(_STREAM_OPERATIONS, reference_streams),
}
_SETTINGS = ("implementations", "penalty_counts", "activation_dtype", "torch_device", "to_device")
_NAMES = tuple(name for name in Ops.__dataclass_fields__ if name not in _SETTINGS)
#: Modules with the native operations of the CPU, in `octavo.ops.cpu`.
_CPU_MODULES: tuple[str, ...] = ("kernels", "states", "streams", "linear", "lora", "program")


def bind(device: str = "cpu", impl: Literal["auto", "reference"] = "auto", binding: Binding | None = None) -> Ops:
    """The table for `device`. "auto" takes each native operation there is; "reference" takes none.

    Another device than the CPU needs a `binding`. Raises KeyError for an unknown device, and DeviceError
    where the CPU's native module is there and cannot be loaded.
    """
    if device == "cuda" and binding is not None:
        # Here and not above: Triton takes half a second, and machines without a GPU may lack it.
        operations, names = importlib.import_module("octavo.ops.triton.bound").operations(binding)
        return Ops(
            **operations,
            activation_dtype=binding.activation_dtype,
            torch_device=binding.torch_device,
            to_device=binding.to_device,
            implementations={name: by for name, by in names.items() if name in _NAMES},
        )
    if device != "cpu":
        raise KeyError(device)
    chosen: dict[str, Any] = {name: getattr(_REFERENCE_MODULES.get(name, reference), name) for name in _NAMES}
    names = dict.fromkeys(_NAMES, "reference")
    native = _native_operations(_CPU_MODULES if impl == "auto" else ())
    for group in (*_GROUPS, *((name,) for name in _NAMES)):
        if all(name in native for name in (*group, *_COMPOSED.get(group[0], ()))):
            chosen |= {name: native[name] for name in group}
            names |= dict.fromkeys(group, device)
    return Ops(**chosen, implementations=names)


def _native_operations(modules: tuple[str, ...]) -> dict[str, Any]:
    """Whatever the modules define of the table: nothing where the native module was not built.

    Raises DeviceError, or what an import raises, where it was built and there is a fault: with the reference in their
    place all would seem well, and be a hundred times slower.
    """
    if not modules:
        return {}
    if not has_native_cpu():
        logger.warning("octavo's native module was not built: the CPU computes with torch, which is very slow.")
        return {}
    found: dict[str, Any] = {}
    for module_name in modules:
        module = importlib.import_module(f"octavo.ops.cpu.{module_name}")
        found |= {name: getattr(module, name) for name in _NAMES if hasattr(module, name)}
    return found


def cache_shapes(
    ops: Ops, shape: Heads | Latent, num_blocks: int, block_size: int, dtype: torch.dtype = torch.float32
) -> tuple[tuple[int, ...], ...]:
    """Of the arrays of `dtype` that hold what a layer keeps: keys and values, or the rows of a latent."""
    if isinstance(shape, Latent):
        return (ops.latent_cache_shape(num_blocks, block_size, shape, dtype),)
    return ops.kv_cache_shapes(num_blocks, block_size, shape.num_kv_heads, shape.head_dim, dtype)
