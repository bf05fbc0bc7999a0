"""Blocks in the place of an attention that keep a state of fixed size for each sequence."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import NormSpec
from octavo.ops.operands import Buffer
from octavo.ops.operations import CausalConv, Gate, GatedDelta, SelectiveScan


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
class Mamba2:
    """The second Mamba: convolutions of its inputs, then a scan by heads, whose results may be normed group by group.

    Its projections and convolutions are one each in checkpoints; here x, b and c have their own. The factors are of
    what the projections give; those of x, b and c go into the filters.
    """

    num_heads: int
    width: int  # of all heads
    state_size: int
    num_groups: int
    taps: int
    norm: NormSpec | None
    conv_bias: bool = True
    out_bias: bool = False
    gate_scale: float = 1.0
    x_scale: float = 1.0
    b_scale: float = 1.0
    c_scale: float = 1.0
    dt_scale: float = 1.0
    out_scale: float = 1.0

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        def product(name: str, rows: int, scale: float = 1.0, bias: bool = False) -> Buffer:
            matrix = Matrix(name=f"mamba.{name}_proj", gguf=f"ssm_{name}", rows=rows, bias=bias, scale=scale)
            return build.linear(x, f"mamba.{name}", [matrix], shard=None)

        def convolved(name: str, width: int, scale: float) -> Buffer:
            columns = product(name, width)
            weight, bias = build.filters(
                f"mamba.conv_{name}", f"ssm_conv_{name}", self.taps, width, self.conv_bias, scale
            )
            out, state = build.buffer(f"mamba.conv_{name}", width), build.state((self.taps - 1, width))
            build.ops.append(CausalConv(out=out, x=columns, weight=weight, bias=bias, state=state))
            return out

        columns = self.num_groups * self.state_size
        gate = product("gate", self.width, self.gate_scale)
        inputs = convolved("in", self.width, self.x_scale)
        b, c = convolved("b", columns, self.b_scale), convolved("c", columns, self.c_scale)
        dt = product("dt", self.num_heads, self.dt_scale, bias=True)
        out = build.buffer("mamba", self.width)
        build.ops.append(
            SelectiveScan(
                out=out, x=inputs, dt=dt, gate=gate, b=b, c=c,
                a_log=build.table("mamba.A_log", "ssm_a", (self.num_heads,)),
                d=build.table("mamba.D", "ssm_d", (self.num_heads,)),
                state=build.state((self.state_size, self.width)),
            )
        )  # fmt: skip
        if self.norm is not None:
            weights = [Matrix(name="mamba.norm", gguf="ssm_norm", rows=self.width)]
            build.norm_parts(out, (0, self.num_groups, self.width // self.num_groups), self.norm, weights, "mamba.norm")
        matrix = Matrix(
            name="mamba.out_proj", gguf="ssm_out", rows=x.width, bias=self.out_bias, scale=self.out_scale,
            bias_scale=self.out_scale,
        )  # fmt: skip
        return build.linear(out, "mamba.out", [matrix], shard=None)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet:
    """A convolution of q, k and v, the gated delta rule, and a norm of what each head gives, behind it a gate."""

    num_heads: int  # of values
    num_key_heads: int
    key_dim: int
    value_dim: int
    taps: int
    norm: NormSpec
    beta_scale: float = 1.0
    tiled: bool = False  # heads take turns at the key heads, else those of one stand side by side

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        keys, values, per_key = (
            self.num_key_heads * self.key_dim, self.num_heads * self.value_dim, self.num_heads // self.num_key_heads,
        )  # fmt: skip
        widths = {"q": keys, "k": keys, "v": values}
        # Sizes of heads: in some checkpoints one tensor has what belongs to a key head.
        b = Matrix(name="linear_attn.b_proj", gguf="ssm_beta", rows=self.num_heads)
        a = Matrix(name="linear_attn.a_proj", gguf="ssm_alpha", rows=self.num_heads, bias=True, head_dim=per_key)
        gate = Matrix(name="linear_attn.gate_proj", gguf="attn_gate", rows=values, head_dim=per_key * self.value_dim)
        projections = [Matrix(name=f"linear_attn.{n}_proj", gguf=f"ssm_{n}", rows=w) for n, w in widths.items()]
        filters = [Matrix(name=f"linear_attn.conv_{n}", gguf=f"ssm_conv_{n}", rows=w) for n, w in widths.items()]
        qkv = build.linear(x, "linear_attn.qkv", projections, shard=None)
        convolved = build.buffer("linear_attn.conv", qkv.width)
        weight = build.filter_parts("linear_attn.conv", filters, self.taps)
        state = build.state((self.taps - 1, qkv.width))
        build.ops.append(CausalConv(out=convolved, x=qkv, weight=weight, state=state))
        out = build.buffer("linear_attn", values)
        build.ops.append(
            GatedDelta(
                out=out, qkv=convolved, gates=build.linear(x, "linear_attn.ba", [b, a], shard=None),
                a_log=build.table("linear_attn.A_log", "ssm_a", (self.num_heads,)), num_key_heads=self.num_key_heads,
                state=build.state((self.num_heads, self.key_dim, self.value_dim)), beta_scale=self.beta_scale,
                tiled=self.tiled,
            )
        )  # fmt: skip
        weights = [Matrix(name="linear_attn.norm", gguf="ssm_norm", rows=self.value_dim)]
        build.norm_parts(out, (0, self.num_heads, self.value_dim), self.norm, weights, "linear_attn.norm")
        gates = build.linear(x, "linear_attn.gate", [gate], shard=None)
        build.ops.append(Gate(x=out, gates=gates, kind="silu"))
        matrix = Matrix(name="linear_attn.out_proj", gguf="ssm_out", rows=x.width)
        return build.linear(out, "linear_attn.out", [matrix], shard=None)
