"""What a program means: its operations one by one, each a call of the table's operation of that name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.ops.lora import ExpertDeltas, bank_name
from octavo.ops.operands import Buffer, Heads, Latent, State, Weight
from octavo.ops.operations import (
    Act,
    Add,
    AddGated,
    AddNorm,
    Attend,
    CausalConv,
    Clip,
    Embed,
    Experts,
    Gate,
    GatedDelta,
    GatherRotation,
    GivenRows,
    HeadLinear,
    KeepRows,
    LatentAttend,
    LatentWrite,
    Linear,
    LoraDelta,
    MergeRows,
    Norm,
    NormParts,
    Op,
    ReplaceRows,
    RopeWrite,
    RopeWriteRows,
    Route,
    SelectiveScan,
)
from octavo.ops.program import Program
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.stream_operations import ActTimes, AltUpCorrect, AltUpPredict, CutGates, MatchRms, Multiply
from octavo.ops.workspace import Workspace

#: By the weight's name: what the table packed, or a float32 tensor where no operation packs (norms, rotations).
Weights = Mapping[str, Any]


class Table(Protocol):
    """`table.Ops`, as far as a program needs it."""

    @property
    def embedding(self) -> Any: ...
    @property
    def linear(self) -> Any: ...
    @property
    def lora_delta(self) -> Any: ...
    @property
    def rms_norm(self) -> Any: ...
    @property
    def add_rms_norm(self) -> Any: ...
    @property
    def layer_norm(self) -> Any: ...
    @property
    def add_layer_norm(self) -> Any: ...
    @property
    def norm_parts_(self) -> Any: ...
    @property
    def add_(self) -> Any: ...
    @property
    def add_gated_(self) -> Any: ...
    @property
    def act_mul(self) -> Any: ...
    @property
    def act(self) -> Any: ...
    @property
    def route(self) -> Any: ...
    @property
    def experts(self) -> Any: ...
    @property
    def clip_(self) -> Any: ...
    @property
    def multiply_(self) -> Any: ...
    @property
    def match_rms_(self) -> Any: ...
    @property
    def cut_gates_(self) -> Any: ...
    @property
    def act_times(self) -> Any: ...
    @property
    def altup_predict_(self) -> Any: ...
    @property
    def altup_correct_(self) -> Any: ...
    @property
    def rope_kv_write(self) -> Any: ...
    @property
    def attention(self) -> Any: ...
    @property
    def causal_conv(self) -> Any: ...
    @property
    def selective_scan(self) -> Any: ...
    @property
    def gated_delta(self) -> Any: ...
    @property
    def gate_(self) -> Any: ...
    @property
    def head_linear(self) -> Any: ...
    @property
    def latent_write(self) -> Any: ...
    @property
    def latent_attention(self) -> Any: ...


class Frame:
    """One run: the step, and the rows of its buffers that are in use."""

    def __init__(
        self,
        space: Workspace,
        step: StepTensors,
        kv_caches: KVCaches,
        needed: Tensor | None,
        weights: Weights,
        num_caches: int,
    ) -> None:
        self._num_caches = num_caches
        self.step = step
        self.kv_caches = kv_caches
        self.needed = needed
        self.adapter_slots = step.adapter_slots
        self._space = space
        self._weights = weights
        self._num_rows = len(step.token_ids)
        self._views: dict[int, Tensor] = {}  # by the whole tensor, which buffers share

    def __getitem__(self, buffer: Buffer) -> Tensor:
        whole = self._space[buffer]
        view = self._views.get(id(whole))
        if view is None:
            view = self._views[id(whole)] = whole[: self._num_rows]
        return view

    def weight(self, weight: Weight | None) -> Any:
        return None if weight is None else self._weights[weight.name]

    def bank(self, weight: Weight) -> Any:
        return self._weights[bank_name(weight)]

    def expert_deltas(self, op: Experts) -> ExpertDeltas | None:
        if self.adapter_slots is None or not op.has_adapters:
            return None
        return ExpertDeltas(self.adapter_slots, self.bank(op.gate_up_weight), self.bank(op.down_weight))

    def state(self, state: State) -> Tensor:
        (found,) = self.kv_caches[self._num_caches + state.index]
        return found

    def attention_plan(self, shape: Heads | Latent) -> Any:
        plan = self.step.attention_plan
        return plan[shape] if isinstance(plan, dict) else plan

    def keep(self, num_rows: int) -> None:
        """The first rows of the buffers are those in use from here on."""
        self._num_rows = num_rows
        self._views = {}
        if self.adapter_slots is not None:
            self.adapter_slots = self.adapter_slots[self.needed]


Handler = Callable[[Table, Any, Frame], None]


class Runner:
    """A program with its weights. `run` may be called by one thread at a time."""

    def __init__(
        self, table: Table, program: Program, weights: Weights, handlers: Mapping[type[Op], Handler] | None = None
    ) -> None:
        """`handlers`: of operations that are only this table's."""
        self.program = program
        self._table = table
        self._weights = weights
        own = {**HANDLERS, **(handlers or {})}
        self._calls = [(own[type(op)], op) for op in program.ops]

    def run(self, space: Workspace, step: StepTensors, kv_caches: KVCaches, needed: Tensor | None = None) -> Tensor:
        """Run the step's tokens; their keys and values go to the caches.

        Returns the program's output, [T, width] of the table's type, or [S, width] for the rows `needed`, int64 [S] in
        rising order: a view, valid until the next run.
        """
        frame = Frame(space, step, kv_caches, needed, self._weights, len(self.program.caches))
        for call, op in self._calls:
            call(self._table, op, frame)
        return frame[self.program.output]


def _embed(table: Table, op: Embed, frame: Frame) -> None:
    ids = frame.step.positions if op.index == "positions" else frame.step.token_ids
    if op.is_partial:
        ids = ids * (ids < op.weight.shape[0])
    table.embedding(frame[op.out], ids, frame.weight(op.weight), op.scale)


def _given_rows(table: Table, op: GivenRows, frame: Frame) -> None:
    rows = frame.step.input_rows
    assert rows is not None
    frame[op.out].copy_(rows)


def _replace_rows(table: Table, op: ReplaceRows, frame: Frame) -> None:
    index, rows = frame.step.replaced_index, frame.step.replaced_rows
    if index is not None and rows is not None:
        own = rows[:, op.first : op.first + op.x.width]
        frame[op.x].index_add_(0, index, own) if op.adds else frame[op.x].index_copy_(0, index, own)


def _linear(table: Table, op: Linear, frame: Frame) -> None:
    table.linear(frame[op.out], frame[op.x], frame.weight(op.weight))


def _lora_delta(table: Table, op: LoraDelta, frame: Frame) -> None:
    if frame.adapter_slots is not None:
        table.lora_delta(frame[op.out], frame[op.x], frame.adapter_slots, frame.bank(op.weight))


def _norm(table: Table, op: Norm, frame: Frame) -> None:
    out, x, weight = frame[op.out], frame[op.x], frame.weight(op.weight)
    if op.kind == "rms":
        table.rms_norm(out, x, weight, op.eps)
    else:
        table.layer_norm(out, x, weight, frame.weight(op.bias), op.eps)


def _norm_parts(table: Table, op: NormParts, frame: Frame) -> None:
    weight, bias = frame.weight(op.weight), frame.weight(op.bias)
    table.norm_parts_(frame[op.x], op.first, op.count, op.width, weight, bias, op.eps, op.kind)


def _add(table: Table, op: Add, frame: Frame) -> None:
    table.add_(frame[op.residual], frame[op.x])


def _add_norm(table: Table, op: AddNorm, frame: Frame) -> None:
    out, residual, x, weight = frame[op.out], frame[op.residual], frame[op.x], frame.weight(op.weight)
    if op.kind == "rms":
        table.add_rms_norm(out, residual, x, weight, op.eps)
    else:
        table.add_layer_norm(out, residual, x, weight, frame.weight(op.bias), op.eps)


def _add_gated(table: Table, op: AddGated, frame: Frame) -> None:
    table.add_gated_(frame[op.residual], frame[op.x], frame[op.gates])


def _act(table: Table, op: Act, frame: Frame) -> None:
    if op.gated:
        table.act_mul(frame[op.out], frame[op.x], op.kind)
    else:
        table.act(frame[op.out], frame[op.x], op.kind, frame.weight(op.parameters))


def _route(table: Table, op: Route, frame: Frame) -> None:
    table.route(
        frame[op.ids], frame[op.weights], frame[op.scores], op.routing, frame.weight(op.bias), frame.weight(op.scales)
    )


def _experts(table: Table, op: Experts, frame: Frame) -> None:
    table.experts(
        frame[op.out],
        frame[op.x],
        frame[op.ids],
        frame[op.weights],
        frame.weight(op.gate_up_weight),
        frame.weight(op.down_weight),
        op.kind,
        places=frame[op.places],
        grouped=frame[op.grouped],
        gate_up=frame[op.gate_up],
        act=frame[op.act],
        gated=op.gated,
        scales_input=op.scales_input,
        deltas=frame.expert_deltas(op),
    )


def _clip(table: Table, op: Clip, frame: Frame) -> None:
    table.clip_(frame[op.x], op.limit)


def _multiply(table: Table, op: Multiply, frame: Frame) -> None:
    table.multiply_(frame[op.x], frame.weight(op.factors))


def _match_rms(table: Table, op: MatchRms, frame: Frame) -> None:
    table.match_rms_(frame[op.x], frame[op.to])


def _cut_gates(table: Table, op: CutGates, frame: Frame) -> None:
    table.cut_gates_(frame[op.x], op.width, op.deviations)


def _act_times(table: Table, op: ActTimes, frame: Frame) -> None:
    table.act_times(frame[op.out], frame[op.x], frame[op.y], op.first, op.kind)


def _altup_predict(table: Table, op: AltUpPredict, frame: Frame) -> None:
    table.altup_predict_([frame[each] for each in op.streams], frame[op.scores], frame.weight(op.coefs))


def _altup_correct(table: Table, op: AltUpCorrect, frame: Frame) -> None:
    table.altup_correct_(
        frame[op.out],
        [frame[each] for each in op.streams],
        frame[op.activated],
        frame[op.scores],
        frame.weight(op.coefs),
        op.active,
        frame.weight(op.scale),
    )


def rotation_of(op: RopeWrite, frame: Frame) -> tuple[Tensor, Tensor | None]:
    """Of each row of the step the row of the rotation that is its; and the rotation."""
    if isinstance(op, RopeWriteRows):
        return frame[op.places].view(-1), frame[op.rotations]
    return frame.step.positions, frame.weight(op.rotation)


def _rope_write(table: Table, op: RopeWrite, frame: Frame) -> None:
    k, v = frame.kv_caches[op.cache.index]
    _, slot_mapping = frame.step.cache_groups[op.cache.group]
    heads = op.heads
    positions, rotation = rotation_of(op, frame)
    table.rope_kv_write(
        frame[op.qkv],
        positions,
        rotation,
        frame.weight(op.q_norm),
        frame.weight(op.k_norm),
        op.eps,
        k,
        v,
        slot_mapping,
        heads.num_heads,
        heads.num_kv_heads,
        heads.head_dim,
        norms_rotated=op.norms_rotated,
        q_scales=frame.weight(op.q_scales),
        k_scale=op.cache.k_scale,
        v_scale=op.cache.v_scale,
    )


def _gather_rotation(table: Table, op: GatherRotation, frame: Frame) -> None:
    out, rotation, parts = frame[op.out], frame.weight(op.rotation), frame.step.position_parts
    half = len(op.parts)
    for part, first, count in op.runs():
        rows = rotation[(frame.step.positions if parts is None else parts[part]).long()]
        for at in (first, half + first):
            out[:, at : at + count] = rows[:, at : at + count]
    frame[op.places].copy_(torch.arange(len(out), dtype=torch.int32, device=out.device)[:, None])


def attend(table: Table, op: Attend, frame: Frame, **more: Any) -> None:
    """`more`: what only this table's attention takes."""
    k, v = frame.kv_caches[op.cache.index]
    step, heads = frame.step, op.heads
    block_tables, _ = step.cache_groups[op.cache.group]
    table.attention(
        frame[op.out],
        frame[op.qkv],
        k,
        v,
        block_tables,
        step.encoder_lens if op.cache.of_encoder else step.seq_lens,
        step.query_start_loc,
        heads.num_heads,
        heads.num_kv_heads,
        heads.head_dim,
        op.scale,
        op.cache.window,
        op.softcap,
        chunked=op.cache.chunked,
        slopes=frame.weight(op.slopes),
        biases=frame.weight(op.biases),
        sinks=frame.weight(op.sinks),
        k_scale=op.cache.k_scale,
        v_scale=op.cache.v_scale,
        causal=op.causal,
        key_ends=step.key_ends if op.reads_key_ends else None,
        blocks=op.blocks,
        plan=step.encoder_plan if op.cache.of_encoder else frame.attention_plan(heads),
        **more,
    )


def _causal_conv(table: Table, op: CausalConv, frame: Frame) -> None:
    step = frame.step
    table.causal_conv(
        frame[op.out],
        frame[op.x],
        frame.weight(op.weight),
        frame.weight(op.bias),
        frame.state(op.state),
        step.state_slots,
        step.positions,
        step.query_start_loc,
        op.gated,
    )


def _selective_scan(table: Table, op: SelectiveScan, frame: Frame) -> None:
    step = frame.step
    table.selective_scan(
        frame[op.out],
        frame[op.x],
        frame[op.dt],
        frame[op.gate],
        frame[op.b],
        frame[op.c],
        frame.weight(op.a_log),
        frame.weight(op.d),
        frame.state(op.state),
        step.state_slots,
        step.positions,
        step.query_start_loc,
    )


def _gated_delta(table: Table, op: GatedDelta, frame: Frame) -> None:
    step = frame.step
    table.gated_delta(
        frame[op.out],
        frame[op.qkv],
        frame[op.gates],
        frame.weight(op.a_log),
        frame.state(op.state),
        step.state_slots,
        step.positions,
        step.query_start_loc,
        op.num_key_heads,
        op.tiled,
        op.beta_scale,
    )


def _gate(table: Table, op: Gate, frame: Frame) -> None:
    table.gate_(frame[op.x], frame[op.gates], op.kind)


def _head_linear(table: Table, op: HeadLinear, frame: Frame) -> None:
    table.head_linear(frame[op.out], frame[op.x], frame.weight(op.weight))


def _latent_write(table: Table, op: LatentWrite, frame: Frame) -> None:
    _, slot_mapping = frame.step.cache_groups[op.cache.group]
    table.latent_write(
        frame[op.q_latent],
        frame[op.q],
        frame[op.kv],
        frame.step.positions,
        frame.weight(op.rotation),
        frame.weight(op.norm),
        op.eps,
        frame.kv_caches[op.cache.index][0],
        slot_mapping,
        op.latent,
    )


def _latent_attend(table: Table, op: LatentAttend, frame: Frame) -> None:
    step = frame.step
    block_tables, _ = step.cache_groups[op.cache.group]
    table.latent_attention(
        frame[op.out],
        frame[op.q_latent],
        frame.kv_caches[op.cache.index][0],
        block_tables,
        step.seq_lens,
        step.query_start_loc,
        op.latent,
        op.scale,
        plan=frame.attention_plan(op.latent),
    )


def _keep_rows(table: Table, op: KeepRows, frame: Frame) -> None:
    needed = frame.needed
    if needed is None:
        return
    for buffer in op.rows:
        rows = frame[buffer]
        rows[: len(needed)] = rows[needed]
    frame.keep(len(needed))


def _merge_rows(table: Table, op: MergeRows, frame: Frame) -> None:
    rows = frame[op.x].view(-1, op.count, op.x.width)
    frame.keep(len(rows))
    if op.kind != "mean":
        merged = rows if op.kind == "rows" else rows.transpose(1, 2)
        frame[op.out].copy_(merged.reshape(-1, op.out.width))
        return
    total = rows[:, 0].float()
    for part in range(1, op.count):  # in the order of the native program
        total = total + rows[:, part]
    frame[op.out].copy_(total / op.count)


HANDLERS: dict[type[Op], Handler] = {
    Embed: _embed,
    GivenRows: _given_rows,
    ReplaceRows: _replace_rows,
    MergeRows: _merge_rows,
    Linear: _linear,
    LoraDelta: _lora_delta,
    Norm: _norm,
    NormParts: _norm_parts,
    Add: _add,
    AddGated: _add_gated,
    AddNorm: _add_norm,
    Act: _act,
    Route: _route,
    Experts: _experts,
    Clip: _clip,
    Multiply: _multiply,
    MatchRms: _match_rms,
    CutGates: _cut_gates,
    ActTimes: _act_times,
    AltUpPredict: _altup_predict,
    AltUpCorrect: _altup_correct,
    GatherRotation: _gather_rotation,
    RopeWrite: _rope_write,
    RopeWriteRows: _rope_write,
    Attend: attend,
    CausalConv: _causal_conv,
    SelectiveScan: _selective_scan,
    GatedDelta: _gated_delta,
    Gate: _gate,
    HeadLinear: _head_linear,
    LatentWrite: _latent_write,
    LatentAttend: _latent_attend,
    KeepRows: _keep_rows,
}
