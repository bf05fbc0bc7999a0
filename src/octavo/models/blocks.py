"""What layers are made of. A block is data; `emit` yields its operations and declares its parameters.

Blocks know each other by one thing: a buffer goes in, and the buffer with the result comes out. A layer adds the
results to the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import AlibiSpec, NormSpec, RopeSpec
from octavo.ops.program import (
    Act,
    Activation,
    Add,
    Attend,
    Buffer,
    CausalConv,
    Experts,
    HeadLinear,
    Heads,
    Latent,
    LatentAttend,
    LatentWrite,
    RopeWrite,
    Route,
    SelectiveScan,
)
from octavo.ops.routing import Routing


class Block(Protocol):
    """Reads x [T, H] and returns as many columns."""

    def emit(self, build: Builder, x: Buffer) -> Buffer: ...


class Layer(Protocol):
    """Changes the residual stream [T, H] in place."""

    def emit(self, build: Builder, residual: Buffer) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal attention over all keys, or those of a window."""

    heads: Heads
    scale: float
    rope: RopeSpec | None = None
    alibi: AlibiSpec | None = None
    window: int = 0  # keys at a distance below it are seen; 0: all
    softcap: float = 0.0  # of the scores; 0: none
    qk_norm: NormSpec | None = None  # of each head of q and k, before the rotation
    bias: bool = False  # of q, k and v
    o_bias: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        heads, dim = self.heads, self.heads.head_dim
        kv_size = heads.num_kv_heads * dim
        rotary = 0 if self.rope is None else self.rope.rotary_dim or dim
        part = partial(Matrix, bias=self.bias, head_dim=dim)
        qkv = build.linear(
            x,
            "self_attn.qkv",
            [
                part(name="self_attn.q_proj", gguf="attn_q", rows=heads.size, rotary_dim=rotary),
                part(name="self_attn.k_proj", gguf="attn_k", rows=kv_size, rotary_dim=rotary),
                part(name="self_attn.v_proj", gguf="attn_v", rows=kv_size),
            ],
            shard=0,
        )
        q_norm = k_norm = None
        if self.qk_norm is not None:
            q_norm = build.norm_weight(self.qk_norm, "self_attn.q_norm", "attn_q_norm", dim, rotary)
            k_norm = build.norm_weight(self.qk_norm, "self_attn.k_norm", "attn_k_norm", dim, rotary)
        cache = build.cache(heads, self.window)
        rotation = None if self.rope is None else build.rotation(self.rope, dim)
        slopes = None if self.alibi is None else build.slopes(self.alibi)
        eps = 0.0 if self.qk_norm is None else self.qk_norm.eps
        attended = build.buffer("self_attn", heads.size)
        build.ops += [
            RopeWrite(qkv=qkv, heads=heads, cache=cache, rotation=rotation, q_norm=q_norm, k_norm=k_norm, eps=eps),
            Attend(
                out=attended, qkv=qkv, heads=heads, cache=cache, scale=self.scale, softcap=self.softcap, slopes=slopes
            ),
        ]
        o = Matrix(name="self_attn.o_proj", gguf="attn_output", rows=x.width, bias=self.o_bias)
        return build.linear(attended, "self_attn.o", [o], shard=1)


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

        keys = build.experts("self_attn.k_b", [part(h, "k_b", latent.rank) for h in heads], latent.nope_dim, shard=0)
        values = build.experts("self_attn.v_b", [part(h, "v_b", self.value_dim) for h in heads], latent.rank, shard=0)
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
class ShortConvolution:
    """In place of attention: out(c * conv(b * y)), where b | c | y are products of x, over the last `taps` tokens."""

    taps: int
    bias: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        inside = Matrix(name="conv.in_proj", gguf="shortconv.in_proj", rows=3 * x.width, bias=self.bias)
        gates = build.linear(x, "conv.in_proj", [inside], shard=None)
        weight, bias = build.filters("conv.conv", "shortconv.conv", self.taps, x.width, self.bias)
        out = build.buffer("conv", x.width)
        state = build.state((self.taps - 1, x.width))
        build.ops.append(CausalConv(out=out, x=gates, weight=weight, bias=bias, state=state, gated=True))
        outside = Matrix(name="conv.out_proj", gguf="shortconv.out_proj", rows=x.width, bias=self.bias)
        return build.linear(out, "conv.out_proj", [outside], shard=None)


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """The first Mamba: a convolution, then a scan whose steps and weights are products of what comes out of it."""

    width: int
    state_size: int
    taps: int
    dt_rank: int
    norm: NormSpec | None = None  # of the factors of dt, and of b and c
    bias: bool = False  # of what leads in and out
    conv_bias: bool = True

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        def product(x: Buffer, name: str, rows: int, bias: bool) -> Buffer:
            matrix = Matrix(name=f"mamba.{name}_proj", gguf=f"ssm_{name}", rows=rows, bias=bias)
            return build.linear(x, f"mamba.{name}", [matrix], shard=None)

        hidden, gate = (product(x, name, self.width, self.bias) for name in ("in", "gate"))
        weight, bias = build.filters("mamba.conv1d", "ssm_conv1d", self.taps, self.width, self.conv_bias)
        inputs = build.buffer("mamba.conv", self.width)
        state = build.state((self.taps - 1, self.width))
        build.ops.append(CausalConv(out=inputs, x=hidden, weight=weight, bias=bias, state=state))
        factors = []
        for name, size in (("dt_in", self.dt_rank), ("b", self.state_size), ("c", self.state_size)):
            factor = product(inputs, name, size, False)
            if self.norm is not None:
                factor = build.norm(factor, self.norm, f"mamba.{name}_layernorm", f"ssm_{name}_norm")
            factors.append(factor)
        dt, b, c = factors
        out = build.buffer("mamba", self.width)
        build.ops.append(
            SelectiveScan(
                out=out, x=inputs, dt=product(dt, "dt", self.width, True), gate=gate, b=b, c=c,
                a_log=build.table("mamba.A_log", "ssm_a", (self.state_size, self.width)),
                d=build.table("mamba.D", "ssm_d", (self.width,)),
                state=build.state((self.state_size, self.width)),
            )
        )  # fmt: skip
        return product(out, "out", x.width, self.bias)


@dataclass(frozen=True, kw_only=True)
class GatedMLP:
    """down(act(gate(x)) * up(x))."""

    size: int
    activation: Activation
    bias: bool = False
    name: str = "mlp"
    gguf: str = ""  # what stands behind a name of its matrices in a GGUF file

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        name, end = self.name, self.gguf and f"_{self.gguf}"
        gate = Matrix(name=f"{name}.gate_proj", gguf=f"ffn_gate{end}", rows=self.size, bias=self.bias)
        up = Matrix(name=f"{name}.up_proj", gguf=f"ffn_up{end}", rows=self.size, bias=self.bias)
        gate_up = build.linear(x, f"{name}.gate_up", [gate, up], shard=0)
        act = build.buffer(f"{name}.act", self.size)
        build.ops.append(Act(out=act, x=gate_up, kind=self.activation))
        down = Matrix(name=f"{name}.down_proj", gguf=f"ffn_down{end}", rows=x.width, bias=self.bias)
        return build.linear(act, f"{name}.down", [down], shard=1)


@dataclass(frozen=True, kw_only=True)
class MLP:
    """down(act(up(x)))."""

    size: int
    activation: Activation
    bias: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        up = build.linear(
            x, "mlp.up", [Matrix(name="mlp.up_proj", gguf="ffn_up", rows=self.size, bias=self.bias)], shard=0
        )
        act = build.buffer("mlp.act", self.size)
        build.ops.append(Act(out=act, x=up, kind=self.activation, gated=False))
        down = Matrix(name="mlp.down_proj", gguf="ffn_down", rows=x.width, bias=self.bias)
        return build.linear(act, "mlp.down", [down], shard=1)


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """The weighted sum of the gated MLPs of the `top_k` experts that a router's scores name."""

    num_experts: int
    top_k: int
    size: int
    activation: Activation
    routing: Routing = Routing()
    has_choice_bias: bool = False  # added to the values by which experts are chosen, and to no weight

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        k, numbers = self.top_k, range(self.num_experts)
        router = Matrix(name="mlp.gate", gguf="ffn_gate_inp", rows=self.num_experts)
        scores = build.router(x, "mlp.gate", router)
        ids, weights, places = build.top_k_buffers("mlp.experts", k)
        bias = build.choice_bias(self.num_experts) if self.has_choice_bias else None
        build.ops.append(Route(ids=ids, weights=weights, scores=scores, routing=self.routing, bias=bias))

        def part(expert: int, name: str, gguf: str, rows: int) -> Matrix:
            return Matrix(name=f"mlp.experts.{expert}.{name}_proj", gguf=f"ffn_{gguf}_exps.{expert}", rows=rows)

        gate_ups = [[part(e, "gate", "gate", self.size), part(e, "up", "up", self.size)] for e in numbers]
        downs = [[part(e, "down", "down", x.width)] for e in numbers]
        out = build.buffer("mlp.experts", x.width)
        build.ops.append(
            Experts(
                out=out,
                x=x,
                ids=ids,
                weights=weights,
                gate_up_weight=build.experts("mlp.experts.gate_up", gate_ups, x.width, shard=1),
                down_weight=build.experts("mlp.experts.down", downs, self.size, shard=2),
                kind=self.activation,
                places=places,
                grouped=build.buffer("mlp.experts.grouped", k * x.width),
                gate_up=build.buffer("mlp.experts.gate_up", 2 * k * self.size),
                act=build.buffer("mlp.experts.act", k * self.size),
            )
        )
        return out


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """The sum of what blocks make of the same x."""

    blocks: tuple[Block, ...]

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        out, *others = [block.emit(build, x) for block in self.blocks]
        build.ops += [Add(residual=out, x=other) for other in others]
        return out


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """Attention, then the MLP, each behind a norm: x += attention(norm(x)); x += mlp(norm(x))."""

    attention: Block
    mlp: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
        build.ops.append(Add(residual=residual, x=self.attention.emit(build, x)))
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
class Parallel:
    """Attention and MLP side by side: x += attention(norm(x)) + mlp(norm(x)), each with a norm of its own."""

    attention: Block
    mlp: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
        mlp_x = build.norm(residual, self.norm, "post_attention_layernorm", "ffn_norm")
        attended = self.attention.emit(build, x)
        build.ops.append(Add(residual=residual, x=attended))
        build.ops.append(Add(residual=residual, x=self.mlp.emit(build, mlp_x)))
