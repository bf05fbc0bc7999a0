"""A program in one native call a step (csrc/cpu/program.h)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.kernels import (
    ACTIVATIONS,
    CACHE_DTYPES,
    MAX_HEAD_DIM,
    NO_BLOCKS,
    check_cache,
    check_latent,
    check_routing,
    native_routing,
)
from octavo.ops.cpu.states import MAX_STATE_SIZE, MAX_TAPS
from octavo.ops.lora import bank_name
from octavo.ops.operands import Heads, Latent, Weight
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
from octavo.ops.run import Runner, Table, Weights
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.stream_operations import (
    MAX_STREAMS,
    ActTimes,
    AltUpCorrect,
    AltUpPredict,
    CutGates,
    MatchRms,
    Multiply,
)
from octavo.ops.workspace import Workspace


class CpuRunner(Runner):
    """`Runner` for weights that the native operations packed. Nothing is checked again from operation to operation."""

    def __init__(self, table: Table, program: Program, weights: Weights) -> None:
        super().__init__(table, program, weights)
        self._native = _cpu.Program()
        self._ids = {buffer: number for number, buffer in enumerate(program.lives)}
        for op in program.ops:
            _RECORDS[type(op)](self, op)
        parts = [max(op.parts) + 1 for op in program.ops if isinstance(op, GatherRotation)]
        self._num_parts = max(parts, default=0)
        self._replaced_width = max(
            (op.first + op.x.width for op in program.ops if isinstance(op, ReplaceRows)), default=0
        )
        self._merged = math.prod(op.count for op in program.ops if isinstance(op, MergeRows))
        self._num_groups = 1 + max((cache.group for cache in program.caches), default=-1)
        self._sees_encoder = any(isinstance(op, Attend) and op.cache.of_encoder for op in program.ops)
        self._input_width = next((op.out.width for op in program.ops if isinstance(op, GivenRows)), None)
        # Whose addresses the native program has.
        self._space: Workspace | None = None
        self._caches: KVCaches | None = None

    def run(self, space: Workspace, step: StepTensors, kv_caches: KVCaches, needed: Tensor | None = None) -> Tensor:
        if kv_caches is not self._caches:
            self._set_caches(kv_caches)
        if space is not self._space:
            self._set_buffers(space)
        num_tokens, num_seqs = step.token_ids.numel(), step.seq_lens.numel()
        assert num_tokens <= space.capacity and len(step.cache_groups) == self._num_groups
        assert step.token_ids.dtype == step.positions.dtype == torch.int32
        assert step.token_ids.is_contiguous() and step.positions.numel() == num_tokens
        assert step.seq_lens.dtype == step.query_start_loc.dtype == torch.int32
        assert step.seq_lens.is_contiguous() and step.query_start_loc.is_contiguous()
        assert step.query_start_loc.numel() == num_seqs + 1
        assert needed is None or (needed.dtype == torch.int64 and needed.is_contiguous())
        if self._num_parts:
            self._set_position_parts(step, num_tokens)
        if self._replaced_width:
            self._set_replaced_rows(step)
        self._native.run(
            rows=num_tokens,
            token_ids=step.token_ids.data_ptr(),
            positions=step.positions.data_ptr(),
            seq_lens=step.seq_lens.data_ptr(),
            query_start_loc=step.query_start_loc.data_ptr(),
            num_seqs=num_seqs,
            groups=[_group(*group, num_tokens, num_seqs) for group in step.cache_groups],
            state_slots=self._state_slots(step),
            input_rows=self._input_rows(step, num_tokens),
            key_ends=_ints(step.key_ends, num_tokens),
            encoder_lens=self._encoder_lens(step),
            needed=0 if needed is None else needed.data_ptr(),
            num_needed=0 if needed is None else needed.numel(),
            adapter_slots=_adapter_slots(step.adapter_slots, num_tokens),
        )
        num_rows = num_tokens if needed is None else needed.numel()
        return space[self.program.output][: num_rows // self._merged]

    def _set_position_parts(self, step: StepTensors, num_tokens: int) -> None:
        parts = step.position_parts
        if parts is None:
            self._native.set_position_parts(parts=0)
            return
        assert parts.shape == (self._num_parts, num_tokens) and parts.dtype == torch.int32 and parts.is_contiguous()
        self._native.set_position_parts(parts=parts.data_ptr())

    def _set_replaced_rows(self, step: StepTensors) -> None:
        rows, index = step.replaced_rows, step.replaced_index
        if rows is None or index is None:
            self._native.set_replaced_rows(rows=0, index=0, count=0, stride=0)
            return
        assert rows.dtype == torch.float32 and rows.is_contiguous()
        assert rows.shape == (index.numel(), self._replaced_width)
        assert index.dtype == torch.int64 and index.is_contiguous()
        self._native.set_replaced_rows(
            rows=rows.data_ptr(), index=index.data_ptr(), count=index.numel(), stride=rows.shape[1]
        )

    def _state_slots(self, step: StepTensors) -> int:
        if not self.program.states:
            return 0
        slots = step.state_slots
        assert slots is not None and slots.dtype == torch.int32 and slots.numel() == step.seq_lens.numel()
        address: int = slots.data_ptr()
        return address

    def _input_rows(self, step: StepTensors, num_tokens: int) -> int:
        if self._input_width is None:
            return 0
        rows = step.input_rows
        assert rows is not None and rows.shape == (num_tokens, self._input_width)
        assert rows.dtype == torch.float32 and rows.is_contiguous()
        address: int = rows.data_ptr()
        return address

    def _encoder_lens(self, step: StepTensors) -> int:
        if not self._sees_encoder:
            return 0
        assert step.encoder_lens is not None
        return _ints(step.encoder_lens, step.seq_lens.numel())

    def _set_caches(self, kv_caches: KVCaches) -> None:
        num_caches = len(self.program.caches)
        states = [state for (state,) in kv_caches[num_caches:]]
        for state, array in zip(self.program.states, states, strict=True):
            assert array.shape[1:] == state.shape and array.dtype == torch.float32 and array.is_contiguous()
        self._native.set_states([state.data_ptr() for state in states])
        if num_caches:
            self._set_kv_caches(kv_caches[:num_caches])
        self._caches = kv_caches

    def _set_kv_caches(self, kv_caches: KVCaches) -> None:
        dtype, block_sizes = kv_caches[0][0].dtype, set()
        for cache, arrays in zip(self.program.caches, kv_caches, strict=True):
            if isinstance(cache.heads, Latent):
                block_sizes.add(check_latent(cache.heads, *arrays))
            else:
                k, v = arrays
                block_sizes.add(check_cache(k, v, cache.heads.num_kv_heads, cache.heads.head_dim))
            assert arrays[0].dtype == dtype
        (block_size,) = block_sizes
        self._native.set_caches(
            caches=[(k.data_ptr(), v.data_ptr(), k.stride(0), v.stride(0)) for k, v in map(_twice, kv_caches)],
            cache_type=CACHE_DTYPES[dtype],
            block_size=block_size,
        )

    def _set_buffers(self, space: Workspace) -> None:
        for buffer in self._ids:
            assert space[buffer].dtype in (torch.float32, torch.int32)
        self._native.set_buffers(addresses=[space[buffer].data_ptr() for buffer in self._ids])
        self._space = space

    # ------------------------------------------------------------ records
    def _matrix(self, weight: Weight) -> Any:
        packed = self._weights[weight.name]
        assert weight.shape == (packed.N, packed.K), (weight, packed)
        return packed.native

    def _vector(self, weight: Weight | None) -> int:
        if weight is None:
            return 0
        values = self._weights[weight.name]
        # A table of rotations has as many rows as sequences may have tokens, which may be fewer than the model's.
        assert values.shape == weight.shape or (values.dim() == 2 and values.shape[1] == weight.shape[1]), weight
        assert values.dtype == torch.float32 and values.is_contiguous(), weight
        address: int = values.data_ptr()
        return address

    def _embed(self, op: Embed) -> None:
        self._native.embed(
            self._matrix(op.weight),
            out=self._ids[op.out],
            scale=op.scale,
            of_positions=op.index == "positions",
            num_known=op.weight.shape[0] if op.is_partial else 0,
        )

    def _given_rows(self, op: GivenRows) -> None:
        self._native.given_rows(out=self._ids[op.out], width=op.out.width)

    def _replace_rows(self, op: ReplaceRows) -> None:
        self._native.replace_rows(x=self._ids[op.x], width=op.x.width, first=op.first, adds=op.adds)

    def _merge_rows(self, op: MergeRows) -> None:
        self._native.merge_rows(
            out=self._ids[op.out],
            x=self._ids[op.x],
            width=op.x.width,
            count=op.count,
            mean=op.kind == "mean",
            turns=op.kind == "columns",
        )

    def _linear(self, op: Linear) -> None:
        self._native.linear(self._matrix(op.weight), out=self._ids[op.out], x=self._ids[op.x])

    def _lora_delta(self, op: LoraDelta) -> None:
        bank = self._weights[bank_name(op.weight)].native
        assert op.weight.shape == (bank.N, bank.K)
        self._native.lora_delta(bank, out=self._ids[op.out], x=self._ids[op.x])

    def _norm(self, op: Norm) -> None:
        self._native.norm(out=self._ids[op.out], x=self._ids[op.x], **self._norm_weights(op))

    def _norm_weights(self, op: Norm | AddNorm) -> dict[str, Any]:
        return {
            "weight": self._vector(op.weight),
            "bias": self._vector(op.bias),
            "width": op.x.width,
            "eps": op.eps,
            "layer_norm": op.kind == "layer",
        }

    def _norm_parts(self, op: NormParts) -> None:
        (size,) = op.weight.shape
        assert size in (op.width, op.count * op.width) and (op.bias is None or op.bias.shape == op.weight.shape)
        self._native.norm_parts(
            x=self._ids[op.x],
            row_width=op.x.width,
            first=op.first,
            count=op.count,
            width=op.width,
            weight=self._vector(op.weight),
            bias=self._vector(op.bias),
            has_own=size != op.width,
            eps=op.eps,
            layer_norm=op.kind == "layer",
        )

    def _add(self, op: Add) -> None:
        self._native.add(residual=self._ids[op.residual], x=self._ids[op.x], width=op.x.width)

    def _add_gated(self, op: AddGated) -> None:
        residual, x, gates = self._ids[op.residual], self._ids[op.x], self._ids[op.gates]
        self._native.add_gated(residual=residual, x=x, gates=gates, width=op.x.width)

    def _add_norm(self, op: AddNorm) -> None:
        out, residual, x = self._ids[op.out], self._ids[op.residual], self._ids[op.x]
        self._native.add_norm(out=out, residual=residual, x=x, **self._norm_weights(op))

    def _clip(self, op: Clip) -> None:
        self._native.clip(x=self._ids[op.x], width=op.x.width, limit=op.limit)

    def _multiply(self, op: Multiply) -> None:
        (size,) = op.factors.shape
        factors = self._vector(op.factors)
        self._native.multiply(x=self._ids[op.x], width=op.x.width, factors=factors, has_one=size != op.x.width)

    def _match_rms(self, op: MatchRms) -> None:
        self._native.match_rms(x=self._ids[op.x], to=self._ids[op.to], width=op.x.width)

    def _cut_gates(self, op: CutGates) -> None:
        self._native.cut_gates(x=self._ids[op.x], row_width=op.x.width, width=op.width, deviations=op.deviations)

    def _act_times(self, op: ActTimes) -> None:
        self._native.act_times(
            out=self._ids[op.out],
            x=self._ids[op.x],
            y=self._ids[op.y],
            width=op.out.width,
            y_width=op.y.width,
            first=op.first,
            kind=ACTIVATIONS[op.kind],
        )

    def _altup(self, op: AltUpPredict | AltUpCorrect) -> dict[str, Any]:
        count = len(op.streams)
        assert count <= MAX_STREAMS and op.coefs.shape[1] == count and op.scores.dtype == torch.float32
        assert op.coefs.shape[0] == (count * count if isinstance(op, AltUpPredict) else count)
        return {
            "streams": [self._ids[each] for each in op.streams],
            "width": op.streams[0].width,
            "scores": self._ids[op.scores],
            "coefs": self._vector(op.coefs),
        }

    def _altup_predict(self, op: AltUpPredict) -> None:
        self._native.altup_predict(**self._altup(op))

    def _altup_correct(self, op: AltUpCorrect) -> None:
        out, activated = self._ids[op.out], self._ids[op.activated]
        self._native.altup_correct(
            **self._altup(op), out=out, activated=activated, active=op.active, scale=self._vector(op.scale)
        )

    def _rope_write(self, op: RopeWrite, rotations: int = -1, places: int = -1) -> None:
        assert op.rotation is None or op.rotation.shape[1] == op.heads.head_dim
        self._native.rope_write(
            qkv=self._ids[op.qkv],
            heads=_counts(op.heads),
            cache=op.cache.index,
            group=op.cache.group,
            rotation=self._vector(op.rotation),
            q_norm=self._vector(op.q_norm),
            k_norm=self._vector(op.k_norm),
            eps=op.eps,
            norms_rotated=op.norms_rotated,
            q_scales=self._vector(op.q_scales),
            k_scale=op.cache.k_scale,
            v_scale=op.cache.v_scale,
            rotations=rotations,
            places=places,
        )

    def _rope_write_rows(self, op: RopeWriteRows) -> None:
        assert op.rotation is None and op.rotations.width == op.heads.head_dim
        self._rope_write(op, self._ids[op.rotations], self._ids[op.places])

    def _gather_rotation(self, op: GatherRotation) -> None:
        self._native.gather_rotation(
            out=self._ids[op.out],
            places=self._ids[op.places],
            rotation=self._vector(op.rotation),
            head_dim=op.out.width,
            runs=op.runs(),
        )

    def _attend(self, op: Attend) -> None:
        assert op.causal or not (op.cache.chunked or op.reads_key_ends)
        assert op.blocks is None or (op.causal and not op.cache.window and not op.reads_key_ends)
        self._native.attend(
            out=self._ids[op.out],
            qkv=self._ids[op.qkv],
            heads=_counts(op.heads),
            row_stride=op.qkv.width,
            cache=op.cache.index,
            group=op.cache.group,
            window=op.cache.window,
            chunked=op.cache.chunked,
            scale=op.scale,
            k_scale=op.cache.k_scale,
            v_scale=op.cache.v_scale,
            softcap=op.softcap,
            slopes=self._vector(op.slopes),
            biases=self._vector(op.biases),
            reach=0 if op.biases is None else op.biases.shape[1] // 2,
            sinks=self._vector(op.sinks),
            causal=op.causal,
            reads_key_ends=op.reads_key_ends,
            of_encoder=op.cache.of_encoder,
            blocks=NO_BLOCKS if op.blocks is None else op.blocks.numbers,
        )

    def _causal_conv(self, op: CausalConv) -> None:
        taps, width = op.weight.shape
        assert taps <= MAX_TAPS and op.state.shape == (taps - 1, width)
        self._native.causal_conv(
            out=self._ids[op.out],
            x=self._ids[op.x],
            state=op.state.index,
            width=width,
            taps=taps,
            weight=self._vector(op.weight),
            bias=self._vector(op.bias),
            gated=op.gated,
        )

    def _selective_scan(self, op: SelectiveScan) -> None:
        size, width = op.state.shape
        heads = 0 if len(op.a_log.shape) == 2 else op.a_log.shape[0]
        groups = op.b.width // size
        assert size <= MAX_STATE_SIZE
        assert width % heads == heads % groups == 0 if heads else op.a_log.shape == (size, width) and groups == 1
        self._native.selective_scan(
            **{name: self._ids[getattr(op, name)] for name in ("out", "x", "dt", "gate", "b", "c")},
            state=op.state.index,
            width=width,
            size=size,
            heads=heads,
            groups=groups,
            a_log=self._vector(op.a_log),
            d=self._vector(op.d),
        )

    def _gated_delta(self, op: GatedDelta) -> None:
        num_heads, key_dim, value_dim = op.state.shape
        assert num_heads % op.num_key_heads == 0
        self._native.gated_delta(
            out=self._ids[op.out],
            qkv=self._ids[op.qkv],
            gates=self._ids[op.gates],
            a_log=self._vector(op.a_log),
            state=op.state.index,
            num_heads=num_heads,
            num_key_heads=op.num_key_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            tiled=op.tiled,
            beta_scale=op.beta_scale,
        )

    def _gate(self, op: Gate) -> None:
        self._native.gate(x=self._ids[op.x], gates=self._ids[op.gates], width=op.x.width, silu=op.kind == "silu")

    def _head_linear(self, op: HeadLinear) -> None:
        self._native.head_linear(
            self._matrices(op.weight),
            out=self._ids[op.out],
            x=self._ids[op.x],
            out_width=op.out.width,
            x_width=op.x.width,
        )

    def _latent_write(self, op: LatentWrite) -> None:
        self._native.latent_write(
            q_latent=self._ids[op.q_latent],
            q=self._ids[op.q],
            kv=self._ids[op.kv],
            latent=_latent(op.latent),
            cache=op.cache.index,
            group=op.cache.group,
            rotation=self._vector(op.rotation),
            norm=self._vector(op.norm),
            eps=op.eps,
        )

    def _latent_attend(self, op: LatentAttend) -> None:
        self._native.latent_attend(
            out=self._ids[op.out],
            q_latent=self._ids[op.q_latent],
            latent=_latent(op.latent),
            cache=op.cache.index,
            group=op.cache.group,
            scale=op.scale,
        )

    def _act(self, op: Act) -> None:
        assert (op.parameters is not None) == (op.kind == "xielu") and not (op.gated and op.parameters)
        self._native.act(
            out=self._ids[op.out],
            x=self._ids[op.x],
            width=op.out.width,
            kind=ACTIVATIONS[op.kind],
            gated=op.gated,
            parameters=self._vector(op.parameters),
        )

    def _route(self, op: Route) -> None:
        check_routing(op.routing, op.scores.width, op.ids.width)
        self._native.route(
            ids=self._ids[op.ids],
            weights=self._ids[op.weights],
            scores=self._ids[op.scores],
            num_experts=op.scores.width,
            top_k=op.ids.width,
            routing=native_routing(op.routing),
            bias=self._vector(op.bias),
            scales=self._vector(op.scales),
        )

    def _experts(self, op: Experts) -> None:
        names = ("out", "x", "ids", "weights", "places", "grouped", "gate_up", "act")
        self._native.experts(
            self._matrices(op.gate_up_weight),
            self._matrices(op.down_weight),
            **{name: self._ids[getattr(op, name)] for name in names},
            top_k=op.top_k,
            width=op.x.width,
            inner=op.act.width // op.top_k,
            kind=ACTIVATIONS[op.kind],
            gated=op.gated,
            scales_input=op.scales_input,
            **self._expert_banks(op),
        )

    def _expert_banks(self, op: Experts) -> dict[str, Any]:
        if not op.has_adapters:
            return {"gate_up_bank": None, "down_bank": None, "num_adapters": 0}
        gate_up, down = (self._weights[bank_name(weight)] for weight in (op.gate_up_weight, op.down_weight))
        for weight, bank in ((op.gate_up_weight, gate_up), (op.down_weight, down)):
            assert weight.shape == (bank.num_experts, bank.bank.native.N, bank.bank.native.K)
        assert gate_up.num_slots == down.num_slots
        return {
            "gate_up_bank": gate_up.bank.native, "down_bank": down.bank.native, "num_adapters": gate_up.num_slots,
        }  # fmt: skip

    def _matrices(self, weight: Weight) -> list[Any]:
        packed = self._weights[weight.name]
        assert weight.shape == (len(packed), packed[0].N, packed[0].K), weight
        return [each.native for each in packed]

    def _keep_rows(self, op: KeepRows) -> None:
        self._native.keep_rows(rows=[self._ids[buffer] for buffer in op.rows], widths=[b.width for b in op.rows])


def _counts(heads: Heads) -> tuple[int, int, int]:
    assert heads.head_dim <= MAX_HEAD_DIM and heads.head_dim % 2 == 0
    assert heads.num_kv_heads == 0 or heads.num_heads % heads.num_kv_heads == 0
    return heads.num_heads, heads.num_kv_heads, heads.head_dim


def _latent(latent: Latent) -> tuple[int, int, int, int]:
    return latent.num_heads, latent.nope_dim, latent.rank, latent.rope_dim


def _twice(arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The rows of a latent, as keys and as values."""
    return arrays if len(arrays) > 1 else arrays * 2


def _adapter_slots(slots: Tensor | None, num_tokens: int) -> int:
    if slots is None:
        return 0
    assert slots.dtype == torch.int32 and slots.is_contiguous() and slots.numel() == num_tokens
    return slots.data_ptr()


def _group(block_tables: Tensor, slot_mapping: Tensor, num_tokens: int, num_seqs: int) -> tuple[int, int, int]:
    assert block_tables.dtype == torch.int32 and slot_mapping.dtype == torch.int64
    assert block_tables.shape[0] == num_seqs and slot_mapping.numel() == num_tokens
    assert block_tables.stride(1) == 1 and slot_mapping.is_contiguous()
    stride = block_tables.stride(0) if num_seqs > 1 else block_tables.shape[1]
    return block_tables.data_ptr(), stride, slot_mapping.data_ptr()


def _ints(values: Tensor | None, count: int) -> int:
    """The address of int32 [count], 0 for None."""
    if values is None:
        return 0
    assert values.dtype == torch.int32 and values.numel() == count and values.is_contiguous()
    address: int = values.data_ptr()
    return address


_RECORDS: dict[type[Op], Callable[[CpuRunner, Any], None]] = {
    Embed: CpuRunner._embed,
    GivenRows: CpuRunner._given_rows,
    ReplaceRows: CpuRunner._replace_rows,
    MergeRows: CpuRunner._merge_rows,
    Linear: CpuRunner._linear,
    LoraDelta: CpuRunner._lora_delta,
    Norm: CpuRunner._norm,
    NormParts: CpuRunner._norm_parts,
    Add: CpuRunner._add,
    AddGated: CpuRunner._add_gated,
    AddNorm: CpuRunner._add_norm,
    Clip: CpuRunner._clip,
    Multiply: CpuRunner._multiply,
    MatchRms: CpuRunner._match_rms,
    CutGates: CpuRunner._cut_gates,
    ActTimes: CpuRunner._act_times,
    AltUpPredict: CpuRunner._altup_predict,
    AltUpCorrect: CpuRunner._altup_correct,
    GatherRotation: CpuRunner._gather_rotation,
    RopeWrite: CpuRunner._rope_write,
    RopeWriteRows: CpuRunner._rope_write_rows,
    Attend: CpuRunner._attend,
    CausalConv: CpuRunner._causal_conv,
    SelectiveScan: CpuRunner._selective_scan,
    GatedDelta: CpuRunner._gated_delta,
    Gate: CpuRunner._gate,
    HeadLinear: CpuRunner._head_linear,
    LatentWrite: CpuRunner._latent_write,
    LatentAttend: CpuRunner._latent_attend,
    Act: CpuRunner._act,
    Route: CpuRunner._route,
    Experts: CpuRunner._experts,
    KeepRows: CpuRunner._keep_rows,
}

program_runner = CpuRunner
