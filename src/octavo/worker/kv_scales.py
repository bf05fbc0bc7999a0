"""Which scales a float8 KV cache has: of a file, of the checkpoint, or found by a run of the model."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from octavo.base.config import CacheConfig
from octavo.base.config.options import json_object
from octavo.base.errors import InvalidConfig
from octavo.device.base import Device
from octavo.models.checkpoint import Checkpoint
from octavo.models.implementation import transformer
from octavo.models.kv_scales import KVScales, cached_layers, is_scale, stored_kv_scales, with_kv_scales
from octavo.models.loader import LoadedModel
from octavo.models.transformer import Transformer
from octavo.ops.table import Ops, cache_shapes
from octavo.worker.cross_inputs import CrossInputs
from octavo.worker.input_batch import InputBatch

logger = logging.getLogger("octavo.worker")

#: Names of --kv-cache-dtype for the type that scales are for. fp8_e5m2 reaches as far as float16, and has none.
SCALED: Final = ("fp8", "fp8_e4m3")
_FILE: Final = "--quantization-param-path"
_MEASURED: Final = "--calculate-kv-scales"
_TOKENS: Final = 256
_BLOCK_SIZE: Final = 16
_MAX_DIGITS: Final = 9  # of a layer's number
#: The largest magnitude found becomes this. Of e4m3's 448 that leaves room for what is four times as large, and below
#: it are thirteen powers of two with three bits each.
_TARGET: Final = 112.0


def check_scale_options(cache: CacheConfig) -> None:
    """Raises InvalidConfig for scales that the cache would not use."""
    if cache.quantization_param_path is not None and cache.calculate_kv_scales:
        raise InvalidConfig(f"{_FILE} and {_MEASURED} are two sources of the same scales: give one of them.")
    given = {_FILE: cache.quantization_param_path is not None, _MEASURED: cache.calculate_kv_scales}
    for option, is_given in given.items():
        if is_given and cache.kv_cache_dtype not in SCALED:
            raise InvalidConfig(
                f"{option} is for a cache of float8: it needs --kv-cache-dtype fp8. "
                f"{cache.kv_cache_dtype} takes no scales from outside."
            )


def scales_of_file(path: str) -> tuple[str | None, dict[int, float]]:
    """What a JSON file of vLLM 0.6 says: the type of the model, if it does, and one scale a layer.

    Raises InvalidConfig for a file that cannot be read, or says something else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidConfig(f"{_FILE} {path}: {error.strerror or error}.") from None
    content = json_object(data, f"{_FILE} {path}")
    cache = content.get("kv_cache")
    if not isinstance(cache, dict):
        raise InvalidConfig(f"{_FILE} {path}: it has no object kv_cache.")
    if cache.get("dtype") != "float8_e4m3fn":
        raise InvalidConfig(f"{_FILE} {path}: kv_cache.dtype is {cache.get('dtype')!r}, and must be 'float8_e4m3fn'.")
    ranks = cache.get("scaling_factor")
    if not isinstance(ranks, dict) or list(ranks) != ["0"] or not isinstance(ranks["0"], dict):
        raise InvalidConfig(
            f'{_FILE} {path}: kv_cache.scaling_factor must hold the layers of one rank, under "0": octavo runs a '
            "model on one device."
        )
    model_type = content.get("model_type")
    return model_type if isinstance(model_type, str) else None, {
        _layer(path, layer): _factor(path, layer, value) for layer, value in ranks["0"].items()
    }


def _layer(path: str, layer: str) -> int:
    if not (layer.isascii() and layer.isdigit() and len(layer) <= _MAX_DIGITS):
        raise InvalidConfig(f"{_FILE} {path}: {layer[:40]!r} is not the number of a layer.")
    return int(layer)


def _factor(path: str, layer: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not is_scale(value):
        raise InvalidConfig(f"{_FILE} {path}: the scale of layer {layer} must be a number above 0, of a float32.")
    return float(value)


def with_scales(
    loaded: LoadedModel, checkpoint: Checkpoint, cache: CacheConfig, ops: Ops, device: Device, max_model_len: int
) -> LoadedModel:
    """The model with the scales of its cache, where that is of e4m3.

    Raises InvalidConfig where a file is of another model or no scales can be measured, and CheckpointError for what
    cannot be a scale.
    """
    if cache.kv_cache_dtype not in SCALED:
        return loaded
    definition = loaded.model.definition
    layers = cached_layers(definition)
    if cache.quantization_param_path is not None:
        source, scales = _FILE, _of_file(cache.quantization_param_path, loaded.spec.model_type, layers)
    elif cache.calculate_kv_scales:
        if definition.encoder is not None and definition.encoder.first is not None:
            raise InvalidConfig(f"{_MEASURED}: what this model hears cannot be made up. Give {_FILE}.")
        if definition.pictures is not None:
            raise InvalidConfig(f"{_MEASURED}: pictures that this model sees cannot be made up. Give {_FILE}.")
        source, scales = _MEASURED, measured_scales(loaded.model, ops, device, max_model_len)
    else:
        stored = stored_kv_scales(checkpoint)
        source, scales = "the checkpoint", {at: stored[layer] for at, layer in layers.items() if layer in stored}
    if not scales:
        return loaded
    values = sorted(value for pair in scales.values() for value in pair)
    logger.info(
        "KV cache: scales of %d of %d layers from %s, %.3g to %.3g",
        len(scales), len(definition.program.caches), source, values[0], values[-1],
    )  # fmt: skip
    scaled = with_kv_scales(definition, scales)
    return replace(loaded, model=transformer(scaled, ops, loaded.weights, device.default_batched_tokens))


def _of_file(path: str, model_type: str, layers: dict[int, int]) -> dict[int, KVScales]:
    of_type, factors = scales_of_file(path)
    if of_type is not None and of_type != model_type:
        raise InvalidConfig(f"{_FILE} {path}: it is for a model of type {of_type!r}, and this one's is {model_type!r}.")
    if set(factors) != set(layers.values()):
        raise InvalidConfig(
            f"{_FILE} {path}: it has scales of {len(factors)} layers, and not of each of the {len(layers)} that keep "
            "keys and values."
        )
    return {index: KVScales(factors[layer], factors[layer]) for index, layer in layers.items()}


def measured_scales(model: Transformer, ops: Ops, device: Device, max_model_len: int) -> dict[int, KVScales]:
    """Of each cache, from the keys and values of a few hundred tokens, at most `max_model_len`: the tables of rotations
    reach no further.

    The tokens are always the same ones, drawn from all of the vocabulary: so a model has the same scales at each start,
    which those of the first request's text would not be.
    """
    definition, at = model.definition, ops.torch_device
    num_tokens = min(_TOKENS, max_model_len)
    num_rows = 0 if definition.encoder is None else min(_TOKENS, definition.encoder.spec.max_positions)
    # Block 0 is left out, as it is elsewhere.
    blocks = range(1, 1 + -(-max(num_tokens, num_rows) // _BLOCK_SIZE))
    caches = [
        tuple(
            torch.zeros(shape, dtype=ops.activation_dtype, device=at)
            for shape in cache_shapes(ops, cache.heads, 1 + len(blocks), _BLOCK_SIZE, ops.activation_dtype)
        )
        for cache in definition.program.caches
    ]
    states = [(torch.zeros((1, *state.shape), device=at),) for state in definition.program.states]
    drawn = torch.randint(
        model.spec.vocab_size, (max(num_tokens, num_rows),), generator=torch.Generator().manual_seed(0)
    )
    num_groups = len(definition.windows)
    positions = torch.arange(num_tokens)
    tables = torch.tensor(blocks, dtype=torch.int32, device=at)
    step = InputBatch(
        token_ids=drawn[:num_tokens].to(at, torch.int32),
        positions=positions.to(at, torch.int32),
        slot_mapping=(positions + _BLOCK_SIZE).to(at).repeat(num_groups, 1),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32, device=at),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32, device=at),
        block_tables=tables.repeat(num_groups, 1, 1),
        state_slots=torch.zeros(1, dtype=torch.int32, device=at) if states else None,
    )
    if num_rows:
        crossing = CrossInputs(model, ops, device, [*caches, *states], _BLOCK_SIZE)
        crossing.write([drawn[:num_rows].tolist()], [[list(blocks)] * definition.num_encoder_groups])
        lens = torch.tensor([num_rows], dtype=torch.int32, device=at)
        step.add_encoder(lens, tables.repeat(definition.num_encoder_groups, 1, 1), None)
    model.forward(step, [*caches, *states])
    found = {}
    for index, layer in cached_layers(definition).items():
        k, v = (float(array.abs().max()) / _TARGET for array in caches[index])
        if not (math.isfinite(k) and math.isfinite(v)):
            raise InvalidConfig(f"{_MEASURED}: keys or values of layer {layer} are not finite.")
        # All of them may be zero, or as good as that.
        found[index] = KVScales(k if is_scale(k) else 1.0, v if is_scale(v) else 1.0)
    return found
