"""What layers are made of. A block is data; `emit` yields its operations and declares its parameters.

Blocks know each other by one thing: a buffer goes in, and the buffer with the result comes out. A layer adds the
results to the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import NormSpec, RopeSpec
from octavo.ops.program import Act, Activation, Add, Attend, Buffer, Heads, RopeWrite


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
    rope: RopeSpec
    scale: float
    window: int = 0  # keys at a distance below it are seen; 0: all
    softcap: float = 0.0  # of the scores; 0: none
    qk_norm: NormSpec | None = None  # of each head of q and k, before the rotation
    bias: bool = False  # of q, k and v
    o_bias: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        heads, dim = self.heads, self.heads.head_dim
        q_size, kv_size, order = heads.size, heads.num_kv_heads * dim, row_order(self.rope, dim)
        qkv = build.linear(
            x,
            "self_attn.qkv",
            [
                Matrix(name="self_attn.q_proj", gguf="attn_q", rows=q_size, bias=self.bias, head_dim=dim, order=order),
                Matrix(name="self_attn.k_proj", gguf="attn_k", rows=kv_size, bias=self.bias, head_dim=dim, order=order),
                Matrix(name="self_attn.v_proj", gguf="attn_v", rows=kv_size, bias=self.bias, head_dim=dim),
            ],
            shard=0,
        )
        q_norm = k_norm = None
        if self.qk_norm is not None:
            q_norm = build.norm_weight(self.qk_norm, "self_attn.q_norm", "attn_q_norm", dim, order)
            k_norm = build.norm_weight(self.qk_norm, "self_attn.k_norm", "attn_k_norm", dim, order)
        cache = build.cache(heads, self.window)
        rotation = build.rotation(self.rope, dim)
        eps = 0.0 if self.qk_norm is None else self.qk_norm.eps
        attended = build.buffer("self_attn", q_size)
        build.ops += [
            RopeWrite(qkv=qkv, heads=heads, cache=cache, rotation=rotation, q_norm=q_norm, k_norm=k_norm, eps=eps),
            Attend(out=attended, qkv=qkv, heads=heads, cache=cache, scale=self.scale, softcap=self.softcap),
        ]
        o = Matrix(name="self_attn.o_proj", gguf="attn_output", rows=x.width, bias=self.o_bias)
        return build.linear(attended, "self_attn.o", [o], shard=1)


def row_order(rope: RopeSpec, head_dim: int) -> tuple[int, ...] | None:
    """The order of a head's rows in which halves are the pairs of the rotation; None: they stand so."""
    if not rope.interleaved:
        return None
    return (*range(0, head_dim, 2), *range(1, head_dim, 2))


@dataclass(frozen=True, kw_only=True)
class GatedMLP:
    """down(act(gate(x)) * up(x))."""

    size: int
    activation: Activation
    bias: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        gate = Matrix(name="mlp.gate_proj", gguf="ffn_gate", rows=self.size, bias=self.bias)
        up = Matrix(name="mlp.up_proj", gguf="ffn_up", rows=self.size, bias=self.bias)
        gate_up = build.linear(x, "mlp.gate_up", [gate, up], shard=0)
        act = build.buffer("mlp.act", self.size)
        build.ops.append(Act(out=act, x=gate_up, kind=self.activation))
        down = Matrix(name="mlp.down_proj", gguf="ffn_down", rows=x.width, bias=self.bias)
        return build.linear(act, "mlp.down", [down], shard=1)


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
