"""The operations of a program, written down as the native program's records (csrc/cpu/program.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from octavo import _cpu
from octavo.ops.cpu.kernels import (
    ACTIVATIONS,
    MAX_HEAD_DIM,
    NO_BLOCKS,
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
from octavo.ops.run import Weights
from octavo.ops.stream_operations import (
    MAX_STREAMS,
    ActTimes,
    AltUpCorrect,
    AltUpPredict,
    CutGates,
    MatchRms,
    Multiply,
)


class Recorder:
    """Writes operations into a native program. Whether they fit its kernels is asked here, once."""

    def __init__(self, native: _cpu.Program, program: Program, weights: Weights) -> None:
        self._native = native
        self._weights = weights
        #: The number of each buffer, in the order in which the native program wants their addresses.
        self.ids: Final = {buffer: number for number, buffer in enumerate(program.lives)}
        for op in program.ops:
            _RECORDS[type(op)](self, op)

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
            out=self.ids[op.out],
            scale=op.scale,
            of_positions=op.index == "positions",
            num_known=op.weight.shape[0] if op.is_partial else 0,
        )

    def _given_rows(self, op: GivenRows) -> None:
        self._native.given_rows(out=self.ids[op.out], width=op.out.width)

    def _replace_rows(self, op: ReplaceRows) -> None:
        self._native.replace_rows(x=self.ids[op.x], width=op.x.width, first=op.first, adds=op.adds)

    def _merge_rows(self, op: MergeRows) -> None:
        self._native.merge_rows(
            out=self.ids[op.out],
            x=self.ids[op.x],
            width=op.x.width,
            count=op.count,
            mean=op.kind == "mean",
            turns=op.kind == "columns",
        )

    def _linear(self, op: Linear) -> None:
        self._native.linear(self._matrix(op.weight), out=self.ids[op.out], x=self.ids[op.x])

    def _lora_delta(self, op: LoraDelta) -> None:
        bank = self._weights[bank_name(op.weight)].native
        assert op.weight.shape == (bank.N, bank.K)
        self._native.lora_delta(bank, out=self.ids[op.out], x=self.ids[op.x])

    def _norm(self, op: Norm) -> None:
        self._native.norm(out=self.ids[op.out], x=self.ids[op.x], **self._norm_weights(op))

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
            x=self.ids[op.x],
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
        self._native.add(residual=self.ids[op.residual], x=self.ids[op.x], width=op.x.width)

    def _add_gated(self, op: AddGated) -> None:
        residual, x, gates = self.ids[op.residual], self.ids[op.x], self.ids[op.gates]
        self._native.add_gated(residual=residual, x=x, gates=gates, width=op.x.width)

    def _add_norm(self, op: AddNorm) -> None:
        out, residual, x = self.ids[op.out], self.ids[op.residual], self.ids[op.x]
        self._native.add_norm(out=out, residual=residual, x=x, **self._norm_weights(op))

    def _clip(self, op: Clip) -> None:
        self._native.clip(x=self.ids[op.x], width=op.x.width, limit=op.limit)

    def _multiply(self, op: Multiply) -> None:
        (size,) = op.factors.shape
        factors = self._vector(op.factors)
        self._native.multiply(x=self.ids[op.x], width=op.x.width, factors=factors, has_one=size != op.x.width)

    def _match_rms(self, op: MatchRms) -> None:
        self._native.match_rms(x=self.ids[op.x], to=self.ids[op.to], width=op.x.width)

    def _cut_gates(self, op: CutGates) -> None:
        self._native.cut_gates(x=self.ids[op.x], row_width=op.x.width, width=op.width, deviations=op.deviations)

    def _act_times(self, op: ActTimes) -> None:
        self._native.act_times(
            out=self.ids[op.out],
            x=self.ids[op.x],
            y=self.ids[op.y],
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
            "streams": [self.ids[each] for each in op.streams],
            "width": op.streams[0].width,
            "scores": self.ids[op.scores],
            "coefs": self._vector(op.coefs),
        }

    def _altup_predict(self, op: AltUpPredict) -> None:
        self._native.altup_predict(**self._altup(op))

    def _altup_correct(self, op: AltUpCorrect) -> None:
        out, activated = self.ids[op.out], self.ids[op.activated]
        self._native.altup_correct(
            **self._altup(op), out=out, activated=activated, active=op.active, scale=self._vector(op.scale)
        )

    def _rope_write(self, op: RopeWrite, rotations: int = -1, places: int = -1) -> None:
        assert op.rotation is None or op.rotation.shape[1] == op.heads.head_dim
        self._native.rope_write(
            qkv=self.ids[op.qkv],
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
        self._rope_write(op, self.ids[op.rotations], self.ids[op.places])

    def _gather_rotation(self, op: GatherRotation) -> None:
        self._native.gather_rotation(
            out=self.ids[op.out],
            places=self.ids[op.places],
            rotation=self._vector(op.rotation),
            head_dim=op.out.width,
            runs=op.runs(),
        )

    def _attend(self, op: Attend) -> None:
        assert op.causal or not (op.cache.chunked or op.reads_key_ends)
        assert op.blocks is None or (op.causal and not op.cache.window and not op.reads_key_ends)
        self._native.attend(
            out=self.ids[op.out],
            qkv=self.ids[op.qkv],
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
            out=self.ids[op.out],
            x=self.ids[op.x],
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
            **{name: self.ids[getattr(op, name)] for name in ("out", "x", "dt", "gate", "b", "c")},
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
            out=self.ids[op.out],
            qkv=self.ids[op.qkv],
            gates=self.ids[op.gates],
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
        self._native.gate(x=self.ids[op.x], gates=self.ids[op.gates], width=op.x.width, silu=op.kind == "silu")

    def _head_linear(self, op: HeadLinear) -> None:
        self._native.head_linear(
            self._matrices(op.weight),
            out=self.ids[op.out],
            x=self.ids[op.x],
            out_width=op.out.width,
            x_width=op.x.width,
        )

    def _latent_write(self, op: LatentWrite) -> None:
        self._native.latent_write(
            q_latent=self.ids[op.q_latent],
            q=self.ids[op.q],
            kv=self.ids[op.kv],
            latent=_latent(op.latent),
            cache=op.cache.index,
            group=op.cache.group,
            rotation=self._vector(op.rotation),
            norm=self._vector(op.norm),
            eps=op.eps,
        )

    def _latent_attend(self, op: LatentAttend) -> None:
        self._native.latent_attend(
            out=self.ids[op.out],
            q_latent=self.ids[op.q_latent],
            latent=_latent(op.latent),
            cache=op.cache.index,
            group=op.cache.group,
            scale=op.scale,
        )

    def _act(self, op: Act) -> None:
        assert (op.parameters is not None) == (op.kind == "xielu") and not (op.gated and op.parameters)
        self._native.act(
            out=self.ids[op.out],
            x=self.ids[op.x],
            width=op.out.width,
            kind=ACTIVATIONS[op.kind],
            gated=op.gated,
            parameters=self._vector(op.parameters),
        )

    def _route(self, op: Route) -> None:
        check_routing(op.routing, op.scores.width, op.ids.width)
        self._native.route(
            ids=self.ids[op.ids],
            weights=self.ids[op.weights],
            scores=self.ids[op.scores],
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
            **{name: self.ids[getattr(op, name)] for name in names},
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
        self._native.keep_rows(rows=[self.ids[buffer] for buffer in op.rows], widths=[b.width for b in op.rows])


def _counts(heads: Heads) -> tuple[int, int, int]:
    assert heads.head_dim <= MAX_HEAD_DIM and heads.head_dim % 2 == 0
    assert heads.num_kv_heads == 0 or heads.num_heads % heads.num_kv_heads == 0
    return heads.num_heads, heads.num_kv_heads, heads.head_dim


def _latent(latent: Latent) -> tuple[int, int, int, int]:
    return latent.num_heads, latent.nope_dim, latent.rank, latent.rope_dim


_RECORDS: dict[type[Op], Callable[[Recorder, Any], None]] = {
    Embed: Recorder._embed,
    GivenRows: Recorder._given_rows,
    ReplaceRows: Recorder._replace_rows,
    MergeRows: Recorder._merge_rows,
    Linear: Recorder._linear,
    LoraDelta: Recorder._lora_delta,
    Norm: Recorder._norm,
    NormParts: Recorder._norm_parts,
    Add: Recorder._add,
    AddGated: Recorder._add_gated,
    AddNorm: Recorder._add_norm,
    Clip: Recorder._clip,
    Multiply: Recorder._multiply,
    MatchRms: Recorder._match_rms,
    CutGates: Recorder._cut_gates,
    ActTimes: Recorder._act_times,
    AltUpPredict: Recorder._altup_predict,
    AltUpCorrect: Recorder._altup_correct,
    GatherRotation: Recorder._gather_rotation,
    RopeWrite: Recorder._rope_write,
    RopeWriteRows: Recorder._rope_write_rows,
    Attend: Recorder._attend,
    CausalConv: Recorder._causal_conv,
    SelectiveScan: Recorder._selective_scan,
    GatedDelta: Recorder._gated_delta,
    Gate: Recorder._gate,
    HeadLinear: Recorder._head_linear,
    LatentWrite: Recorder._latent_write,
    LatentAttend: Recorder._latent_attend,
    Act: Recorder._act,
    Route: Recorder._route,
    Experts: Recorder._experts,
    KeepRows: Recorder._keep_rows,
}
