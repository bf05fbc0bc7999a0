"""Scales of a float8 KV cache: those that a checkpoint brings, and a definition that has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.bridge.declare import BridgedDefinition
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import Definition
from octavo.models.quantized_checkpoint import QuantizedCheckpoint
from octavo.ops.operands import Latent
from octavo.ops.operations import CacheOp, Op
from octavo.ops.program import Program

#: `self_attn.k_scale` of compressed-tensors, `k_proj.k_scale` of ModelOpt, `k_proj.output_scale` of AutoFP8 and Quark;
#: `kv_scale` is that of both.
_NAME: Final = re.compile(r".*?\.(\d+)\..*\.(?:([kv])_scale|kv_scale|([kv])_proj\.output_scale)")

_SMALLEST: Final = 2.0**-126


class KVScales(NamedTuple):
    """Of a layer: its cache holds keys / k and values / v."""

    k: float
    v: float


def stored_kv_scales(checkpoint: Checkpoint) -> dict[int, KVScales]:
    """By layer. Raises CheckpointError for scales that are not one positive number for a layer's keys or values."""
    if not isinstance(checkpoint, QuantizedCheckpoint):
        return {}
    found: dict[int, dict[str, float]] = {}
    for name, tensor in checkpoint.attention_scales().items():
        if match := _NAME.fullmatch(name):
            scales = found.setdefault(int(match[1]), {})
            for kind in match[2] or match[3] or "kv":
                scales[kind] = _scale(checkpoint.source, name, tensor)
    # One without the other is that of both, as in the files of tools that know only one.
    return {
        layer: KVScales(scales.get("k") or scales["v"], scales.get("v") or scales["k"])
        for layer, scales in found.items()
    }


def _scale(source: str, name: str, tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise CheckpointError(
            f"{source}: {name} has {tensor.numel()} scales, and a float8 KV cache has one a layer: serve the model "
            "with another --kv-cache-dtype"
        )
    value = float(tensor)
    if not is_scale(value):
        raise CheckpointError(f"{source}: {name} is {value:g}, which no scale of a KV cache can be")
    return value


def is_scale(value: float) -> bool:
    """Whether kernels can multiply by it and divide by it, in float32."""
    return _SMALLEST <= value <= 1 / _SMALLEST


def cached_layers(definition: Definition) -> dict[int, int]:
    """The layers whose keys and values have scales, by the index of their cache: latents have none, nor have the keys
    of an encoder."""
    return {
        cache.index: cache.index if cache.layer is None else cache.layer
        for cache in definition.program.caches
        if not isinstance(cache.heads, Latent) and not cache.of_encoder
    }


def with_kv_scales(definition: Definition, scales: Mapping[int, KVScales]) -> Definition:
    """The same model with these scales, by the index of the cache."""

    def scaled(op: Op) -> Op:
        if not isinstance(op, CacheOp) or op.cache.index not in scales:
            return op
        k, v = scales[op.cache.index]
        return replace(op, cache=replace(op.cache, k_scale=k, v_scale=v))

    program = Program(tuple(scaled(op) for op in definition.program.ops), definition.program.output)
    if not isinstance(definition, BridgedDefinition):
        return replace(definition, program=program)
    calls = [replace(call, write=scaled(call.write), attend=scaled(call.attend)) for call in definition.calls]  # type: ignore[arg-type]
    return replace(definition, program=program, calls=tuple(calls))
