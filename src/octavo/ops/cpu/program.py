"""A program in one native call a step (csrc/cpu/program.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.kernels import (
    ACTIVATIONS,
    CACHE_DTYPES,
    MAX_HEAD_DIM,
    check_cache,
    check_routing,
    native_routing,
)
from octavo.ops.program import (
    Act,
    Add,
    AddGated,
    AddNorm,
    Attend,
    Clip,
    Embed,
    Experts,
    Heads,
    KeepRows,
    Linear,
    Norm,
    NormParts,
    Op,
    Program,
    RopeWrite,
    Route,
    Weight,
)
from octavo.ops.run import Runner, Table, Weights
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.workspace import Workspace


class CpuRunner(Runner):
    """`Runner` for weights that the native operations packed. Nothing is checked again from operation to operation."""

    def __init__(self, table: Table, program: Program, weights: Weights) -> None:
        super().__init__(table, program, weights)
        self._native = _cpu.Program()
        self._ids = {buffer: number for number, buffer in enumerate(program.lives)}
        for op in program.ops:
            _RECORDS[type(op)](self, op)
        self._num_groups = 1 + max(cache.group for cache in program.caches)
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
        self._native.run(
            rows=num_tokens,
            token_ids=step.token_ids.data_ptr(),
            positions=step.positions.data_ptr(),
            seq_lens=step.seq_lens.data_ptr(),
            query_start_loc=step.query_start_loc.data_ptr(),
            num_seqs=num_seqs,
            groups=[_group(*group, num_tokens, num_seqs) for group in step.cache_groups],
            needed=0 if needed is None else needed.data_ptr(),
            num_needed=0 if needed is None else needed.numel(),
        )
        return space[self.program.output][: num_tokens if needed is None else needed.numel()]

    def _set_caches(self, kv_caches: KVCaches) -> None:
        first_k, first_v = kv_caches[0]
        for cache, (k, v) in zip(self.program.caches, kv_caches, strict=True):
            check_cache(k, v, cache.heads.num_kv_heads, cache.heads.head_dim)
            assert k.dtype == first_k.dtype and v.shape[2] == first_v.shape[2]
        self._native.set_caches(
            caches=[(k.data_ptr(), v.data_ptr()) for k, v in kv_caches],
            cache_type=CACHE_DTYPES[first_k.dtype],
            block_size=first_v.shape[2],
        )
        self._caches = kv_caches

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
            self._matrix(op.weight), out=self._ids[op.out], scale=op.scale, of_positions=op.index == "positions"
        )

    def _linear(self, op: Linear) -> None:
        self._native.linear(self._matrix(op.weight), out=self._ids[op.out], x=self._ids[op.x])

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

    def _rope_write(self, op: RopeWrite) -> None:
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
        )

    def _attend(self, op: Attend) -> None:
        self._native.attend(
            out=self._ids[op.out],
            qkv=self._ids[op.qkv],
            heads=_counts(op.heads),
            cache=op.cache.index,
            group=op.cache.group,
            window=op.cache.window,
            chunked=op.cache.chunked,
            scale=op.scale,
            softcap=op.softcap,
            slopes=self._vector(op.slopes),
            sinks=self._vector(op.sinks),
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
        )

    def _matrices(self, weight: Weight) -> list[Any]:
        packed = self._weights[weight.name]
        assert weight.shape == (len(packed), packed[0].N, packed[0].K), weight
        return [each.native for each in packed]

    def _keep_rows(self, op: KeepRows) -> None:
        self._native.keep_rows(rows=[self._ids[buffer] for buffer in op.rows], widths=[b.width for b in op.rows])


def _counts(heads: Heads) -> tuple[int, int, int]:
    assert heads.head_dim <= MAX_HEAD_DIM and heads.head_dim % 2 == 0 and heads.num_heads % heads.num_kv_heads == 0
    return heads.num_heads, heads.num_kv_heads, heads.head_dim


def _group(block_tables: Tensor, slot_mapping: Tensor, num_tokens: int, num_seqs: int) -> tuple[int, int, int]:
    assert block_tables.dtype == torch.int32 and slot_mapping.dtype == torch.int64
    assert block_tables.shape[0] == num_seqs and slot_mapping.numel() == num_tokens
    assert block_tables.stride(1) == 1 and slot_mapping.is_contiguous()
    stride = block_tables.stride(0) if num_seqs > 1 else block_tables.shape[1]
    return block_tables.data_ptr(), stride, slot_mapping.data_ptr()


_RECORDS: dict[type[Op], Callable[[CpuRunner, Any], None]] = {
    Embed: CpuRunner._embed,
    Linear: CpuRunner._linear,
    Norm: CpuRunner._norm,
    NormParts: CpuRunner._norm_parts,
    Add: CpuRunner._add,
    AddGated: CpuRunner._add_gated,
    AddNorm: CpuRunner._add_norm,
    Clip: CpuRunner._clip,
    RopeWrite: CpuRunner._rope_write,
    Attend: CpuRunner._attend,
    Act: CpuRunner._act,
    Route: CpuRunner._route,
    Experts: CpuRunner._experts,
    KeepRows: CpuRunner._keep_rows,
}

program_runner = CpuRunner
