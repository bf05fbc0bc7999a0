"""Vectors in place of tokens: what is made of a sequence's rows, and how models without a cache run.

What is added up has one order, in float64, whatever the steps in which a prompt was computed; the products with a
classifier's heads are made of one row alone. So a vector depends on its text only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from octavo.base.params import PoolingParams
from octavo.device.base import Device
from octavo.models.pooling_files import Dense, DenseNorm, Pooling
from octavo.models.spec import HeadActivation, HeadSpec
from octavo.models.transformer import Transformer
from octavo.ops.table import Ops
from octavo.wire.step import ModelRunnerOutput, NewRequestData, SchedulerOutput, TokenMasks
from octavo.worker.encoder import EncoderRunner
from octavo.worker.input_batch import HostBatch
from octavo.worker.model_runner import RunningStep
from octavo.worker.request_states import RequestStates

_ACTIVATIONS: Final[Mapping[HeadActivation, Callable[[Tensor], Tensor]]] = {
    "": lambda x: x, "tanh": torch.tanh, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}  # fmt: skip
#: Below it a vector is not made longer.
_SHORTEST: Final = 1e-12


@dataclass(slots=True)
class _Partial:
    """Of a sequence that is computed step by step: what its rows so far come to."""

    params: PoolingParams
    kind: str
    count: int = 0
    total: np.ndarray | None = None  # float64 [H]
    rows: list[np.ndarray] = field(default_factory=list)


class Pooler:
    """One vector for each sequence, as the model has it and its request wants it."""

    def __init__(self, pooling: Pooling, weights: Mapping[str, Any]) -> None:
        """`weights`: of the model, by name."""
        self._pooling = pooling
        self._heads = [*(_dense(head, weights) for head in pooling.spec.heads), *pooling.dense]
        self._partial: dict[int, _Partial] = {}

    def begin(self, request: NewRequestData) -> None:
        params = request.pooling or PoolingParams()
        self._partial[request.slot] = _Partial(params, params.kind or self._pooling.kind)

    def apply(self, plan: SchedulerOutput) -> None:
        """Forget the sequences that left their slots, and know of those that come."""
        for slot in plan.finished_slots:
            self._partial.pop(slot, None)
        for new in plan.new_requests:
            self.begin(new)

    @property
    def reads_last_rows(self) -> bool:
        """No sequence under way needs another row than its last."""
        return all(partial.kind == "last" for partial in self._partial.values())

    def take(self, slot: int, rows: np.ndarray, *, is_last: bool) -> bytes | None:
        """The next `rows` float32 [T, H] of a sequence. Behind the last of them: its result, float32, little-endian."""
        partial = self._partial[slot]
        if partial.kind == "mean":
            wide = rows.astype(np.float64)
            wide = wide if partial.total is None else np.concatenate([partial.total[None], wide])
            # Row by row: one order, wherever the steps were cut.
            partial.total = np.add.reduce(wide, axis=0)
            partial.count += len(rows)
        elif partial.kind == "all":
            partial.rows.append(rows.copy())
        elif partial.kind == "last":
            partial.rows = [rows[-1:].copy()]
        elif not partial.rows:
            partial.rows = [rows[:1].copy()]
        if not is_last:
            return None
        del self._partial[slot]
        if partial.kind == "all":
            return self._all(np.concatenate(partial.rows), partial.params)
        if partial.total is not None:
            row = (partial.total / partial.count).astype(np.float32)
        else:
            row = partial.rows[0][0]
        return _bytes(self._finished(row, partial.params))

    def of_step(
        self, states: RequestStates, host: HostBatch, hidden: Tensor, *, is_last_rows: bool
    ) -> dict[int, bytes]:
        """The results of the sequences that a step completes. `hidden`: of all of its tokens, or of the last of each
        sequence that is complete."""
        rows = _numpy(hidden)
        done: dict[int, bytes] = {}
        number = 0
        for at, slot in enumerate(host.slots.tolist()):
            is_last = bool(host.seq_lens[at] >= states.num_tokens[slot])
            if is_last_rows:
                own = rows[number : number + 1]
                number += is_last
                if not is_last:
                    continue
            else:
                own = rows[host.query_start_loc[at] : host.query_start_loc[at + 1]]
            if (result := self.take(slot, own, is_last=is_last)) is not None:
                done[slot] = result
        return done

    def _all(self, rows: np.ndarray, params: PoolingParams) -> bytes:
        """Each token's own row, as the model's last layer has it."""
        rows = rows[:, : params.dimensions]
        return _bytes(np.stack([_unit(row) for row in rows]) if params.normalize else rows)

    def _finished(self, row: np.ndarray, params: PoolingParams) -> np.ndarray:
        pooling = self._pooling
        if self._heads or pooling.spec.classes:
            row = self._headed(torch.tensor(row), params).numpy()
        if pooling.spec.classes:
            return row
        values = row[: params.dimensions]
        return _unit(values) if (pooling.normalizes if params.normalize is None else params.normalize) else values

    def _headed(self, x: Tensor, params: PoolingParams) -> Tensor:
        for head in self._heads:
            x = functional.linear(x, head.weight, head.bias)
            x = _ACTIVATIONS[head.activation](x)
            if head.norm is not None:
                x = functional.layer_norm(x, x.shape, head.norm.weight, head.norm.bias, head.norm.eps)
        return x if params.activation is False else _probabilities(x, self._pooling.spec.classes)


def _probabilities(x: Tensor, classes: str) -> Tensor:
    if classes == "softmax":
        return torch.softmax(x, dim=-1)
    return torch.sigmoid(x) if classes == "sigmoid" else x


def _unit(values: np.ndarray) -> np.ndarray:
    """float32, of the length 1."""
    wide = values.astype(np.float64)
    length = float(np.sqrt(np.add.reduce(wide * wide)))
    result: np.ndarray = (wide / max(length, _SHORTEST)).astype(np.float32)
    return result


def _dense(head: HeadSpec, weights: Mapping[str, Any]) -> Dense:
    def found(name: str, is_there: bool) -> Tensor | None:
        return _host(weights[name]) if is_there else None

    norm = None
    if head.norm is not None:
        name = head.norm_name
        bias = found(f"{name}.bias", head.norm.bias)
        norm = DenseNorm(weight=_host(weights[f"{name}.weight"]), bias=bias, eps=head.norm.eps)
    return Dense(_host(weights[f"{head.name}.weight"]), found(f"{head.name}.bias", head.bias), head.activation, norm)


def _host(weight: Tensor) -> Tensor:
    return weight.to("cpu", torch.float32)


def _numpy(hidden: Tensor) -> np.ndarray:
    result: np.ndarray = hidden.to("cpu", torch.float32).numpy()
    return result


def _bytes(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()


def encodes_beside(device: Device) -> bool:
    """Whether steps of whole texts run in a thread of their own."""
    return device.name == "cpu"


@dataclass(slots=True)
class _EncodingStep(RunningStep):
    new: Sequence[NewRequestData] = ()
    hidden: Callable[[], np.ndarray] | None = None  # waits for the rows, float32 [T, H]


class EncodingRunner:
    """In the place of a `ModelRunner` where every token sees all of its sequence: a request is computed in the step in
    which it comes, and nothing is kept."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, pooler: Pooler) -> None:
        definition = model.definition
        self._runner = EncoderRunner(definition.program, ops, device, model.weights)
        self._pooler = pooler
        #: Where steps run while the host plans the next and tells of the last: a CPU's cores do both.
        self._thread = ThreadPoolExecutor(1, "octavo-encode") if encodes_beside(device) else None
        self._last: Future[np.ndarray] | None = None
        #: By how much the position of a token of the second text differs, where positions know of it.
        spec = definition.spec
        self._second = spec.max_position_embeddings if spec.token_types > 1 and spec.learned_positions else 0
        #: And by how much its id does, where ids do.
        self._second_id = spec.vocab_size if spec.types_by_id else 0

    def execute(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        return self.collect(self.submit(plan))

    def submit(self, plan: SchedulerOutput) -> _EncodingStep:
        """Begin with a step, which holds new requests alone. Raises MemoryError, or torch's own."""
        new = plan.new_requests
        step = _EncodingStep(list(plan.num_scheduled_tokens), new=new)
        if not new:
            return step
        assert all(plan.num_scheduled_tokens[each.slot] == len(each.prompt_token_ids) for each in new)
        lens = [len(each.prompt_token_ids) for each in new]
        ids = np.concatenate([self._ids(each) for each in new])
        positions = self._positions(new)
        if self._thread is None:
            hidden = _numpy(self._runner.run(lens, token_ids=ids, positions=positions))
            step.hidden = lambda: hidden
            return step
        if not self._runner.has_room(lens):
            if self._last is not None:
                wait([self._last])
            self._runner.reserve(lens)

        def run() -> np.ndarray:
            # The next step overwrites it, maybe before the answer to this one is asked for.
            return _numpy(self._runner.run(lens, token_ids=ids, positions=positions)).copy()

        self._last = self._thread.submit(run)
        step.hidden = self._last.result
        return step

    def submit_masks(self, step: RunningStep, masks: TokenMasks) -> None:
        raise AssertionError("what has no tokens has no masks of them")

    def collect(self, step: RunningStep) -> ModelRunnerOutput:
        """Wait for its rows, and make vectors of them."""
        assert isinstance(step, _EncodingStep)
        if step.hidden is None:
            return ModelRunnerOutput({slot: [] for slot in step.slots})
        try:
            hidden = step.hidden()
        except MemoryError as exc:
            message = f"The server ran out of memory while it computed this request: {exc}"
            return ModelRunnerOutput({}, errors=dict.fromkeys(step.slots, message))
        start, pooled = 0, {}
        for each in step.new:
            end = start + len(each.prompt_token_ids)
            self._pooler.begin(each)
            result = self._pooler.take(each.slot, hidden[start:end], is_last=True)
            assert result is not None
            pooled[each.slot] = result
            start = end
        return ModelRunnerOutput({slot: [] for slot in step.slots}, pooled=pooled)

    def _ids(self, request: NewRequestData) -> np.ndarray:
        ids = np.array(request.prompt_token_ids, np.int32)
        if self._second_id and request.pooling is not None and request.pooling.second_from:
            ids[request.pooling.second_from :] += self._second_id
        return ids

    def _positions(self, new: Sequence[NewRequestData]) -> np.ndarray | None:
        """None: those of each sequence, from 0 on."""
        if not self._second or not any(each.pooling and each.pooling.second_from for each in new):
            return None
        parts = []
        for each in new:
            positions = np.arange(len(each.prompt_token_ids), dtype=np.int32)
            if each.pooling is not None and each.pooling.second_from:
                positions[each.pooling.second_from :] += self._second
            parts.append(positions)
        return np.concatenate(parts)
