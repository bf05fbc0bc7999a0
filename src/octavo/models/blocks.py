"""What layers are made of. A block is data; `emit` yields its operations and declares its parameters.

Blocks know each other by one thing: a buffer goes in, and the buffer with the result comes out. A layer adds the
results to the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import AlibiSpec, LogQScaleSpec, NormSpec, QScaleSpec, RelativeSpec, RopeSpec
from octavo.ops.operands import Buffer, Heads, KeyBlocks, Latent
from octavo.ops.operations import (
    Act,
    Activation,
    Add,
    Attend,
    Clip,
    Gate,
    HeadLinear,
    LatentAttend,
    LatentWrite,
    RopeWrite,
    RopeWriteRows,
)
from octavo.ops.program import ProgramError
from octavo.ops.stream_operations import CutGates


class Block(Protocol):
    """Reads x [T, H] and returns as many columns."""

    def emit(self, build: Builder, x: Buffer) -> Buffer: ...


class Layer(Protocol):
    """Changes the residual stream [T, H] in place."""

    def emit(self, build: Builder, residual: Buffer) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention over all keys up to a token's own, or those of a window."""

    heads: Heads
    scale: float
    rope: RopeSpec | None = None
    alibi: AlibiSpec | None = None
    relative: RelativeSpec | None = None
    window: int = 0  # keys at a distance below it are seen, to both sides where it is not causal; 0: all
    chunked: bool = False  # instead those of the query's chunk of `window` positions
    softcap: float = 0.0  # of the scores; 0: none
    has_sinks: bool = False  # each head sees one more key, of a score of its own and of no value
    clip: float = 0.0  # q, k and v are held between -clip and clip; 0: they are not
    qk_norm: NormSpec | None = None  # of q and k, before the rotation
    #: head: of each, all with the same weights. each head: with weights of its own. row: of all of them together.
    qk_norm_of: Literal["head", "each head", "row"] = "head"
    norms_rotated: bool = False  # the norm (RMS, of each head) comes behind the rotation
    q_scale: QScaleSpec | LogQScaleSpec | None = None
    bias: bool = False  # of q, k and v
    k_bias: bool = True  # k has one where q and v do
    o_bias: bool = False
    is_gated: bool = False  # each value that a head gives is multiplied by the sigmoid of one of a product of x
    o_scale: float = 1.0  # the result is multiplied by it
    v_norm: NormSpec | None = None  # of each head of v, without weights
    v_is_k: bool = False  # v is what k is before its norm and rotation; the matrix is read twice, which is a copy less
    kv_from: int | None = None  # an earlier layer, whose keys and values are seen; this one has none
    causal: bool = True  # a token sees those before it, and else the whole of its sequence
    reads_key_ends: bool = False  # causal, but for rows with an end of their own: `ops.operations.Attend`
    blocks: KeyBlocks | None = None  # a head sees some blocks of keys only

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        heads, dim = self.heads, self.heads.head_dim
        kv_size = heads.num_kv_heads * dim
        rotary = 0 if self.rope is None else self.rope.rotary_dim or dim
        part = partial(Matrix, bias=self.bias, head_dim=dim)
        parts = [part(name="self_attn.q_proj", gguf="attn_q", rows=heads.size, rotary_dim=rotary)]
        if self.kv_from is None:
            v, gguf_v = ("k", "attn_k") if self.v_is_k else ("v", "attn_v")
            parts += [
                part(
                    name="self_attn.k_proj",
                    gguf="attn_k",
                    rows=kv_size,
                    rotary_dim=rotary,
                    bias=self.bias and self.k_bias,
                ),
                part(name=f"self_attn.{v}_proj", gguf=gguf_v, rows=kv_size),
            ]
        qkv = build.linear(x, "self_attn.qkv", parts, shard=0)
        if self.clip:
            build.ops.append(Clip(x=qkv, limit=self.clip))
        q_norm = k_norm = None
        if self.qk_norm is not None and (self.qk_norm_of != "head" or self.qk_norm.kind == "layer"):
            self._norm_parts(build, qkv, self.qk_norm, rotary)
        elif self.qk_norm is not None:
            q_norm = k_norm = build.norm_weight(self.qk_norm, "self_attn.q_norm", "attn_q_norm", dim, rotary)
            if self.kv_from is None:
                k_norm = build.norm_weight(self.qk_norm, "self_attn.k_norm", "attn_k_norm", dim, rotary)
        if self.v_norm is not None and self.kv_from is None:
            ones = [Matrix(name="self_attn.v_norm", gguf="attn_v_norm", rows=dim)]
            first = (heads.num_heads + heads.num_kv_heads) * dim
            build.norm_parts(qkv, (first, heads.num_kv_heads, dim), self.v_norm, ones, "self_attn.v_norm")
        cache = build.cache(heads, self.window, self.chunked) if self.kv_from is None else build.cache_of(self.kv_from)
        written = heads if self.kv_from is None else replace(heads, num_kv_heads=0)
        rotation = None if self.rope is None or self.rope.sections else build.rotation(self.rope, dim)
        slopes = None if self.alibi is None else build.slopes(self.alibi)
        biases = None if self.relative is None else build.relative_biases(self.relative, heads.num_heads)
        q_scales = None if self.q_scale is None else build.q_scales(self.q_scale)
        eps = 0.0 if self.qk_norm is None else self.qk_norm.eps
        sinks = None
        if self.has_sinks:
            declared = Matrix(name="self_attn.sinks", gguf="attn_sinks", rows=heads.num_heads)
            sinks = build.vector([declared], declared.name, "weight", "norm")
        write = RopeWrite(
            qkv=qkv, heads=written, cache=cache, rotation=rotation, q_norm=q_norm, k_norm=k_norm, eps=eps,
            norms_rotated=self.norms_rotated, q_scales=q_scales,
        )  # fmt: skip
        if self.rope is not None and self.rope.sections:
            rotations, places = build.rotation_rows(self.rope, dim)
            write = RopeWriteRows(**vars(write), rotations=rotations, places=places)
        attended = build.buffer("self_attn", heads.size)
        build.ops += [
            write,
            Attend(
                out=attended,
                qkv=qkv,
                heads=heads,
                cache=cache,
                scale=self.scale,
                softcap=self.softcap,
                slopes=slopes,
                biases=biases,
                sinks=sinks,
                causal=self.causal,
                reads_key_ends=self.reads_key_ends,
                blocks=self.blocks,
            ),
        ]  # fmt: skip
        if self.is_gated:
            gate = part(name="self_attn.gate_proj", gguf="attn_gate", rows=heads.size)
            build.ops.append(Gate(x=attended, gates=build.linear(x, "self_attn.gate", [gate], shard=0), kind="sigmoid"))
        o = Matrix(
            name="self_attn.o_proj", gguf="attn_output", rows=x.width, bias=self.o_bias, scale=self.o_scale,
            bias_scale=self.o_scale,
        )  # fmt: skip
        return build.linear(attended, "self_attn.o", [o], shard=1)

    def _norm_parts(self, build: Builder, qkv: Buffer, norm: NormSpec, rotary: int) -> None:
        """The norms of q and k that `RopeWrite` has not."""
        if self.kv_from is not None:
            raise ProgramError("of an attention without keys of its own only an RMS norm of each head is there")
        if self.norms_rotated:
            raise ProgramError(
                "only an RMS norm of each head, with the same weights for all, comes behind the rotation"
            )
        dim, first = self.heads.head_dim, 0
        for part, count in (("q", self.heads.num_heads), ("k", self.heads.num_kv_heads)):
            name, gguf = f"self_attn.{part}_norm", f"attn_{part}_norm"
            declared = partial(Matrix, name=name, gguf=gguf, head_dim=dim, rotary_dim=rotary)
            weights, parts = [declared(rows=dim)], (first, count, dim)
            if self.qk_norm_of == "each head":
                weights = [declared(name=f"{name}.{h}", gguf=f"{gguf}.{h}", rows=dim) for h in range(count)]
            elif self.qk_norm_of == "row":
                weights, parts = [declared(rows=count * dim)], (first, 1, count * dim)
            build.norm_parts(qkv, parts, norm, weights, name)
            first += count * dim


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: keys and values of all heads are products of one latent a token, and that is cached.

    A head's matrix of keys is applied to its query instead, and its matrix of values to what attention gives.
    """

    latent: Latent
    value_dim: int
    scale: float
    rope: RopeSpec
    norm: NormSpec
    q_rank: int = 0  # queries are products of a latent, too, of this rank; 0: of x
    bias: bool = False  # of the projections of x, and of the last one

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        latent, heads = self.latent, range(self.latent.num_heads)
        q = self._queries(build, x)
        down = Matrix(
            name="self_attn.kv_a_proj_with_mqa", gguf="attn_kv_a_mqa", rows=latent.width, bias=self.bias,
            head_dim=latent.width, rotary_dim=latent.rope_dim, rotary_at=latent.rank,
        )  # fmt: skip
        kv = build.linear(x, "self_attn.kv_a", [down], shard=None)
        norm = build.norm_weight(self.norm, "self_attn.kv_a_layernorm", "attn_kv_a_norm", latent.rank)

        def part(head: int, name: str, rows: int) -> list[Matrix]:
            return [Matrix(name=f"self_attn.{name}_proj.{head}", gguf=f"attn_{name}.{head}", rows=rows)]

        keys = build.experts(
            "self_attn.k_b", [part(h, "k_b", latent.rank) for h in heads], latent.nope_dim, shard=0, packing="heads"
        )
        values = build.experts(
            "self_attn.v_b", [part(h, "v_b", self.value_dim) for h in heads], latent.rank, shard=0, packing="heads"
        )
        q_latent = build.buffer("self_attn.q_latent", latent.num_heads * latent.width)
        attended = build.buffer("self_attn.latent", latent.num_heads * latent.rank)
        out = build.buffer("self_attn", latent.num_heads * self.value_dim)
        cache, rotation = build.cache(latent), build.rotation(self.rope, latent.rope_dim)
        build.ops += [
            HeadLinear(out=q_latent, x=q, weight=keys),
            LatentWrite(
                q_latent=q_latent, q=q, kv=kv, latent=latent, cache=cache, rotation=rotation, norm=norm,
                eps=self.norm.eps,
            ),
            LatentAttend(out=attended, q_latent=q_latent, latent=latent, cache=cache, scale=self.scale),
            HeadLinear(out=out, x=attended, weight=values),
        ]  # fmt: skip
        o = Matrix(name="self_attn.o_proj", gguf="attn_output", rows=x.width, bias=self.bias)
        return build.linear(out, "self_attn.o", [o], shard=1)

    def _queries(self, build: Builder, x: Buffer) -> Buffer:
        head_dim = self.latent.nope_dim + self.latent.rope_dim
        part = partial(
            Matrix, rows=self.latent.num_heads * head_dim, head_dim=head_dim, rotary_dim=self.latent.rope_dim,
            rotary_at=self.latent.nope_dim,
        )  # fmt: skip
        if not self.q_rank:
            return build.linear(x, "self_attn.q", [part(name="self_attn.q_proj", gguf="attn_q")], shard=0)
        down = Matrix(name="self_attn.q_a_proj", gguf="attn_q_a", rows=self.q_rank, bias=self.bias)
        x = build.linear(x, "self_attn.q_a", [down], shard=None)
        x = build.norm(x, self.norm, "self_attn.q_a_layernorm", "attn_q_a_norm")
        return build.linear(x, "self_attn.q_b", [part(name="self_attn.q_b_proj", gguf="attn_q_b")], shard=0)


@dataclass(frozen=True, kw_only=True)
class GatedMLP:
    """down(act(gate(x)) * up(x)), where gate and down may have a factor each."""

    size: int
    activation: Activation
    bias: bool = False
    down_bias: bool = False  # of down alone
    name: str = "mlp"
    gguf_suffix: str = ""
    gate_scale: float = 1.0
    down_scale: float = 1.0
    cut: float | None = None  # of the gates only those count that lie so many standard deviations above their mean

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        def part(name: str, rows: int, scale: float = 1.0) -> Matrix:
            bias = self.bias or (self.down_bias and name == "down")
            return Matrix(
                name=f"{self.name}.{name}_proj", gguf=f"ffn_{name}{self.gguf_suffix}", rows=rows, bias=bias,
                scale=scale, bias_scale=scale,
            )  # fmt: skip

        inside = [part("gate", self.size, self.gate_scale), part("up", self.size)]
        gate_up = build.linear(x, f"{self.name}.gate_up", inside, shard=0)
        if self.cut is not None:
            build.ops.append(CutGates(x=gate_up, width=self.size, deviations=self.cut))
        act = build.buffer(f"{self.name}.act", self.size)
        build.ops.append(Act(out=act, x=gate_up, kind=self.activation))
        return build.linear(act, f"{self.name}.down", [part("down", x.width, self.down_scale)], shard=1)


@dataclass(frozen=True, kw_only=True)
class MLP:
    """down(act(up(x)))."""

    size: int
    activation: Activation
    bias: bool = False
    name: str = "mlp"
    gguf_suffix: str = ""
    xielu: tuple[float, float] | None = None  # its parameters, where they are not tensors of the checkpoint

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        def part(name: str, rows: int) -> Matrix:
            gguf = f"ffn_{name}{self.gguf_suffix}"
            return Matrix(name=f"{self.name}.{name}_proj", gguf=gguf, rows=rows, bias=self.bias)

        up = build.linear(x, f"{self.name}.up", [part("up", self.size)], shard=0)
        act = build.buffer(f"{self.name}.act", self.size)
        parameters = None
        if self.activation == "xielu":
            names = [
                Matrix(name=f"mlp.act_fn.{name}", gguf=f"ffn_act.{name}", rows=1) for name in ("alpha_p", "alpha_n")
            ]
            parameters = (
                build.vector(names, "mlp.act_fn", "", "bias") if self.xielu is None else build.constant(*self.xielu)
            )
        build.ops.append(Act(out=act, x=up, kind=self.activation, gated=False, parameters=parameters))
        return build.linear(act, f"{self.name}.down", [part("down", x.width)], shard=1)


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """In the place of one block: first(x) + second(x)."""

    first: Block
    second: Block

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        out = self.first.emit(build, x)
        build.ops.append(Add(residual=out, x=self.second.emit(build, x)))
        return out


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """Attention, then the MLP, each behind a norm: x += attention(norm(x)); x += mlp(norm(x)). Either may be absent."""

    attention: Block | None
    mlp: Block | None
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        if self.attention is not None:
            x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
            build.ops.append(Add(residual=residual, x=self.attention.emit(build, x)))
        if self.mlp is not None:
            x = build.norm(residual, self.norm, "post_attention_layernorm", "ffn_norm")
            build.ops.append(Add(residual=residual, x=self.mlp.emit(build, x)))


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """`Sequential`, with a norm also of what each block adds: x += norm(attention(norm(x))), and so the MLP."""

    attention: Block
    mlp: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
        x = self.attention.emit(build, x)
        x = build.norm(x, self.norm, "post_attention_layernorm", "post_attention_norm")
        build.ops.append(Add(residual=residual, x=x))
        x = build.norm(residual, self.norm, "pre_feedforward_layernorm", "ffn_norm")
        x = self.mlp.emit(build, x)
        x = build.norm(x, self.norm, "post_feedforward_layernorm", "post_ffw_norm")
        build.ops.append(Add(residual=residual, x=x))


@dataclass(frozen=True, kw_only=True)
class PostNorm:
    """Attention, then the MLP, each with a norm behind it: x += norm(attention(x)); x += norm(mlp(x))."""

    attention: Block
    mlp: Block
    norm: NormSpec
    names: tuple[str, str] = ("post_attention_layernorm", "post_feedforward_layernorm")

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = self.attention.emit(build, residual)
        x = build.norm(x, self.norm, self.names[0], "post_attention_norm")
        build.ops.append(Add(residual=residual, x=x))
        x = self.mlp.emit(build, residual)
        x = build.norm(x, self.norm, self.names[1], "post_ffw_norm")
        build.ops.append(Add(residual=residual, x=x))


@dataclass(frozen=True, kw_only=True)
class NormedSum:
    """The residual stream is normed behind each sum: x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    attention: Block
    mlp: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        build.ops.append(Add(residual=residual, x=self.attention.emit(build, residual)))
        build.norm_in_place(residual, self.norm, "input_layernorm", "attn_output_norm")
        build.ops.append(Add(residual=residual, x=self.mlp.emit(build, residual)))
        build.norm_in_place(residual, self.norm, "post_attention_layernorm", "layer_output_norm")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Attention and MLP side by side: x += attention(norm(x)) + mlp(norm(x)), with one norm or each with its own."""

    attention: Block
    mlp: Block
    norm: NormSpec
    shares_norm: bool = False
    gguf_norms: tuple[str, str] = ("attn_norm", "ffn_norm")

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = mlp_x = build.norm(residual, self.norm, "input_layernorm", self.gguf_norms[0])
        if not self.shares_norm:
            mlp_x = build.norm(residual, self.norm, "post_attention_layernorm", self.gguf_norms[1])
        attended = self.attention.emit(build, x)
        build.ops.append(Add(residual=residual, x=attended))
        build.ops.append(Add(residual=residual, x=self.mlp.emit(build, mlp_x)))
