"""Programs that keep nothing between steps: encoders of text, towers of images and sounds; and what layers of a decoder
see of an encoder's rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from octavo.models.blocks import Block, Layer
from octavo.models.builder import Builder
from octavo.models.params import Matrix, Param
from octavo.models.spec import DerivedSpec, NormSpec
from octavo.ops.operands import Buffer, Cache, Heads, Weight
from octavo.ops.operations import Act, Activation, Add, Attend, Embed, GivenRows, Linear, NormParts, Op, RopeWrite
from octavo.ops.program import Program, program


@dataclass(frozen=True, kw_only=True)
class FramesSpec:
    """Two convolutions along time, each over three frames and with an activation behind it. The second takes every
    other frame: two frames of the input are a row of the encoder.

    frames  [2 T, channels]  --three side by side-->  [2 T, 3 channels]  --first-->   [2 T, hidden_size]
    rows    [T, hidden_size] <--second--  [T, 3 hidden_size]  <--three side by side, every other--
    """

    channels: int  # values of a frame
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Input, layers, norm. A sequence is encoded in one step, and each of its rows sees what its layers let it see.

    The input is token ids, rows of `input_width`, or frames. Names: of the checkpoint's tensors, as they
    are after the family's renames; of GGUF's likewise.
    """

    name: str = "model.encoder"
    gguf: str = "enc"
    hidden_size: int
    max_positions: int  # rows of a sequence, at most
    layers: tuple[Layer, ...]
    norm: NormSpec | None  # behind the layers
    input_width: int = 0  # 0: token ids
    vocab_size: int = 0  # of an embedding of its own; 0: it shares the decoder's
    input_bias: bool | None = (
        None  # rows go through a matrix that has a bias, or none; None: they are taken as they are
    )
    frames: FramesSpec | None = None
    embedding_scale: float = 1.0
    learned_positions: bool = False
    embedding_norm: NormSpec | None = None


@dataclass(frozen=True, eq=False)
class EncoderDefinition:
    """Before its weights are there. `program`: from token ids or given rows to rows [T, hidden_size]. `first`: of
    frames, from three side by side [2 T, 3 channels] to rows [2 T, hidden_size], of which `program` gets three."""

    spec: EncoderSpec
    program: Program
    params: tuple[Param, ...]
    derived: dict[Weight, DerivedSpec]
    first: Program | None = None


def define_encoder(spec: EncoderSpec, embedding: Weight | None = None) -> EncoderDefinition:
    """`embedding`: of the decoder, where it is shared. Raises ProgramError if the blocks do not fit together."""
    build = Builder(spec.max_positions, f"{spec.name}.layers", f"{spec.gguf}.blk", keeps=False)
    residual = Buffer("residual", spec.hidden_size)
    first: Program | None = None
    if spec.frames is not None:
        first = program(convolutions(build, spec.frames, residual, spec.name, spec.gguf), residual)
    elif not spec.input_width:
        if spec.vocab_size:
            table = Matrix(name=f"{spec.name}.embed_tokens", gguf=f"{spec.gguf}.token_embd", rows=spec.vocab_size)
            embedding = build.matrices(f"{spec.name}.embedding", [table], spec.hidden_size, None, "embedding")
        assert embedding is not None, "an encoder of tokens has a vocabulary, or shares the decoder's"
        build.ops.append(Embed(out=residual, weight=embedding, scale=spec.embedding_scale))
    elif spec.input_bias is None:
        build.ops.append(GivenRows(out=residual))
    else:
        rows = Buffer("input", spec.input_width)
        build.ops.append(GivenRows(out=rows))
        name = f"{spec.name}.embed_input"
        wide = Matrix(name=name, gguf=f"{spec.gguf}.input", rows=spec.hidden_size, bias=spec.input_bias)
        residual = build.linear(rows, name, [wide], None)
    if spec.learned_positions:
        name = f"{spec.name}.embed_positions"
        table = Matrix(name=name, gguf=f"{spec.gguf}.position_embd", rows=spec.max_positions)
        positions = build.buffer("positions", spec.hidden_size)
        weight = build.matrices(name, [table], spec.hidden_size, None, "embedding")
        build.ops.append(Embed(out=positions, weight=weight, index="positions"))
        build.ops.append(Add(residual=residual, x=positions))
    if spec.embedding_norm is not None:
        norm = f"{spec.name}.embed_norm"
        residual = build.norm(residual, spec.embedding_norm, norm, f"{spec.gguf}.token_embd_norm")
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
    build.top()
    output = residual
    if spec.norm is not None:
        output = build.norm(residual, spec.norm, f"{spec.name}.norm", f"{spec.gguf}.output_norm")
    derived = {weight: each for (each, _), weight in build.derived.items()}
    return EncoderDefinition(spec, program(build.ops, output), tuple(build.params), derived, first)


def convolutions(build: Builder, spec: FramesSpec, out: Buffer, name: str, gguf: str) -> list[Op]:
    """Returns the first one, as operations of a program of its own; those of the second are `build`'s. `out`: the rows
    of either."""
    _convolve(build, spec, out, spec.channels, f"{name}.conv1", f"{gguf}.conv1")
    first = build.cut()
    _convolve(build, spec, out, out.width, f"{name}.conv2", f"{gguf}.conv2")
    return first


def _convolve(build: Builder, spec: FramesSpec, out: Buffer, channels: int, name: str, gguf: str) -> None:
    """Of rows that hold three frames: of each channel its three values."""
    taps = Buffer(f"{name}.taps", 3 * channels)
    build.ops.append(GivenRows(out=taps))
    summed = build.linear(taps, name, [Matrix(name=name, gguf=gguf, rows=out.width, bias=True)], None)
    build.ops.append(Act(out=out, x=summed, kind=spec.activation, gated=False, parameters=None))


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Attention of the decoder's queries over the keys of an encoder's rows, which are written once a request."""

    heads: Heads
    scale: float
    bias: bool = False  # of q and v
    k_bias: bool = False
    o_bias: bool = False
    qk_norm: NormSpec | None = None  # of each head of q and k, with the same weights
    name: str = "encoder_attn"
    gguf: str = "cross_attn"

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        name, gguf, heads = self.name, self.gguf, self.heads
        q = Matrix(name=f"{name}.q_proj", gguf=f"{gguf}_q", rows=heads.size, bias=self.bias)
        queries = build.linear(x, f"{name}.q", [q], shard=0)
        if self.qk_norm is not None:
            weights = [Matrix(name=f"{name}.q_norm", gguf=f"{gguf}_q_norm", rows=heads.head_dim)]
            build.norm_parts(queries, (0, heads.num_heads, heads.head_dim), self.qk_norm, weights, f"{name}.q_norm")
        cache = build.encoder_cache(heads, partial(self._written, build))
        attended = build.buffer(name, heads.size)
        build.ops.append(Attend(out=attended, qkv=queries, heads=heads, cache=cache, scale=self.scale, causal=False))
        o = Matrix(name=f"{name}.o_proj", gguf=f"{gguf}_output", rows=x.width, bias=self.o_bias)
        return build.linear(attended, f"{name}.o", [o], shard=1)

    def _written(self, build: Builder, rows: Buffer, cache: Cache) -> Iterator[Op]:
        """Keys and values of the encoder's rows."""
        kv_size = self.heads.num_kv_heads * self.heads.head_dim
        k = Matrix(name=f"{self.name}.k_proj", gguf=f"{self.gguf}_k", rows=kv_size, bias=self.k_bias)
        v = Matrix(name=f"{self.name}.v_proj", gguf=f"{self.gguf}_v", rows=kv_size, bias=self.bias)
        kv = build.buffer(f"{self.name}.kv", 2 * kv_size)
        yield Linear(out=kv, x=rows, weight=build.matrices(f"{self.name}.kv", [k, v], rows.width, shard=0))
        count, dim = self.heads.num_kv_heads, self.heads.head_dim
        if self.qk_norm is not None:
            weight = build.norm_weight(self.qk_norm, f"{self.name}.k_norm", f"{self.gguf}_k_norm", dim)
            yield NormParts(
                x=kv, first=0, count=count, width=dim, weight=weight, eps=self.qk_norm.eps, kind=self.qk_norm.kind
            )
        no_queries = Heads(num_heads=0, num_kv_heads=count, head_dim=dim)
        yield RopeWrite(qkv=kv, heads=no_queries, cache=cache, rotation=None)


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """A decoder's layer: attention, cross attention, MLP, each behind a norm of its own; with `norms_sums` the norms
    stand behind the sums."""

    attention: Block
    cross: Block
    mlp: Block
    norm: NormSpec
    norms_sums: bool

    def emit(self, build: Builder, residual: Buffer) -> None:
        parts = (
            (self.attention, "input_layernorm", "attn_norm"),
            (self.cross, "encoder_attn_layer_norm", "cross_attn_norm"),
            (self.mlp, "post_attention_layernorm", "ffn_norm"),
        )
        for block, name, gguf in parts:
            if self.norms_sums:
                build.ops.append(Add(residual=residual, x=block.emit(build, residual)))
                build.norm_in_place(residual, self.norm, name, gguf)
            else:
                x = build.norm(residual, self.norm, name, gguf)
                build.ops.append(Add(residual=residual, x=block.emit(build, x)))
