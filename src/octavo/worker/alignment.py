"""When the tokens of a transcript were said: how much their rows look at the rows of the encoder (`SpeechAlignment`).

A request that wants it is computed as any other. When its prompt is whole, it is run once more, by itself and as far
as the last layer of which a head is wanted, with the queries of these layers kept; keys are made again of the
encoder's rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.base.params import SpeechAlignment
from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.transformer import Transformer
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Attend, Linear, RopeWrite
from octavo.ops.program import Program
from octavo.ops.run import Runner
from octavo.ops.step import KVCaches
from octavo.ops.table import Ops
from octavo.ops.workspace import Workspace
from octavo.worker.input_batch import InputBatch


@dataclass(frozen=True)
class _Crossing:
    """How a layer sees the encoder's rows."""

    attend: Attend
    at: int  # of the program's operations
    keys: Weight  # of keys and values


@dataclass
class _Listening:
    """The program as far as the last of some layers."""

    runner: Runner
    space: Workspace
    queries: dict[int, Buffer]  # by layer


class SpeechAligner:
    """Not to be used by two threads at once."""

    def __init__(
        self, model: Transformer, ops: Ops, device: Device, kv_caches: KVCaches, heard: dict[int, Tensor]
    ) -> None:
        """`heard`: of the slots that want an alignment, the encoder's rows [R, H]; taken out when they are used."""
        self._heard = heard
        self._model = model
        self._ops = ops
        self._device = device
        self._kv_caches = kv_caches
        self._crossings = _crossings(model.definition)
        self._made: dict[tuple[int, ...], _Listening] = {}

    def leave(self, slot: int) -> None:
        """The slot's request has ended."""
        self._heard.pop(slot, None)

    def matrix(self, wanted: SpeechAlignment, batch: InputBatch, slot: int) -> bytes:
        """`batch`: all tokens of the slot's request, whose keys and values it writes once more."""
        rows = self._heard.pop(slot)
        layers = tuple(sorted({layer for layer, _ in wanted.heads}))
        listening = self._listening(layers, len(batch.token_ids))
        listening.runner.run(listening.space, batch, self._kv_caches)
        first, num_tokens = wanted.first_token, len(batch.token_ids)
        total = torch.zeros(num_tokens - first, wanted.num_rows, device=rows.device)
        for layer in layers:
            attend = self._crossings[layer].attend
            size = attend.heads.head_dim
            queries = listening.space[listening.queries[layer]][first:num_tokens].float()
            keys = self._keys(layer, rows)
            for head in (head for each, head in wanted.heads if each == layer):
                of_keys = head * attend.heads.num_kv_heads // attend.heads.num_heads
                own = keys[:, of_keys * size : (of_keys + 1) * size].float()
                seen = torch.softmax(attend.scale * queries[:, head * size : (head + 1) * size] @ own.T, -1)
                total += smoothed(standardised(seen[:, : wanted.num_rows]), wanted.smoothing)
        return (total / len(wanted.heads)).cpu().numpy().tobytes()

    def _keys(self, layer: int, rows: Tensor) -> Tensor:
        weight = self._crossings[layer].keys
        made = torch.empty(len(rows), weight.shape[0], dtype=self._ops.activation_dtype, device=rows.device)
        self._ops.linear(made, rows, self._model.weights[weight.name])
        return made

    def _listening(self, layers: tuple[int, ...], num_tokens: int) -> _Listening:
        made = self._made.get(layers)
        if made is None:
            last = self._crossings[layers[-1]]
            queries = {layer: self._crossings[layer].attend.qkv for layer in layers}
            ops = self._model.definition.program.ops[: last.at + 1]
            program = Program(ops, last.attend.out, tuple(queries.values()))
            runner = self._ops.program_runner(self._ops, program, self._model.weights)
            made = self._made[layers] = _Listening(runner, self._space(runner, num_tokens), queries)
        if made.space.capacity < num_tokens:
            made.space = self._space(made.runner, num_tokens)
        return made

    def _space(self, runner: Runner, num_tokens: int) -> Workspace:
        return Workspace(runner.program, num_tokens, self._ops.activation_dtype, self._device.torch_device)


def _crossings(definition: Definition) -> list[_Crossing]:
    """Of the layers, in order."""
    assert definition.crossing is not None
    ops = definition.crossing.ops
    weights = {op.out: op.weight for op in ops if isinstance(op, Linear)}
    keys = [weights[op.qkv] for op in ops if isinstance(op, RopeWrite)]
    attends = [
        (at, op) for at, op in enumerate(definition.program.ops) if isinstance(op, Attend) and op.cache.of_encoder
    ]
    return [_Crossing(op, at, weight) for (at, op), weight in zip(attends, keys, strict=True)]


def standardised(seen: Tensor) -> Tensor:
    """Of each column [tokens, rows] the distance from its mean, in standard deviations."""
    spread, mean = torch.std_mean(seen, dim=0, correction=0, keepdim=True)
    return (seen - mean) / spread.clamp(min=torch.finfo(seen.dtype).tiny)


def smoothed(values: Tensor, width: int) -> Tensor:
    """Of each value [tokens, rows] the median of the `width`, an odd number, around it in its line, which is mirrored
    at its ends."""
    half = width // 2
    if values.shape[1] <= half:
        return values
    padded = F.pad(values[None], (half, half), mode="reflect")[0]
    around = [padded[:, i : i + values.shape[1]] for i in range(width)]
    # The smallest go to the front, one a round, until the middle one stands at its place.
    for place in range(half + 1):
        for i in range(width - 1, place, -1):
            low, high = around[i - 1], around[i]
            around[i - 1], around[i] = torch.minimum(low, high), torch.maximum(low, high)
    return around[half]
