"""A model as data: operations over buffers, made once from a configuration and checked before anything is loaded.

An operation names what it reads and writes; it holds no tensor. Its weights are names too, which the loader binds to
what the table packed. `run` is the meaning of a program, call by call; a device may translate the list to records of
its own (`cpu_program`) or rewrite it (`triton.fuse`).

Rows of all buffers are the step's tokens; behind `KeepRows`, those whose results somebody wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch

from octavo.ops.routing import Routing

#: rms: x / sqrt(mean(x^2) + eps) * weight. layer: the same of x - mean(x), plus a bias if there is one.
NormKind = Literal["rms", "layer"]
#: gelu: by the error function.
#: quick_gelu: x * sigmoid(1.702 x). relu2: relu(x)^2. xielu: of Apertus, with two parameters (`Act`).
#: swiglu_oai: of GPT-OSS, gated only, more than a factor of `up`: `reference.act_mul`.
Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "quick_gelu", "relu2", "xielu", "swiglu_oai"]
_Widths = Iterator[tuple["Buffer", int]]


@dataclass(frozen=True, eq=False)
class Buffer:
    """[rows, width]: a value of the step. One operation writes it; those that say so change it in place."""

    name: str
    width: int
    dtype: torch.dtype | None = None  # None: the table's type of activations


@dataclass(frozen=True)
class Weight:
    """A parameter by name, in the shape in which operations see it: matrices [N, K], tables [rows, width], vectors [N].

    Matrices of experts are [E, N, K]. `shard`: the dimension along which ranks would divide it. N: each has some of the
    results. K: each has a part of every sum, so that results would have to be added up over the ranks. None: each has
    all of it.
    """

    name: str
    shape: tuple[int, ...]
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Of an attention. Head h of the queries reads head h * num_kv_heads // num_heads of keys and values."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def size(self) -> int:
        """Columns of all queries, and of what attention gives."""
        return self.num_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Columns of the stacked projection q | k | v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def cached_size(self) -> int:
        """Values that are kept of a token."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def ops_per_key(self) -> int:
        """Sums and products of one query with one key and its value."""
        return 4 * self.size


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Of a multi-head latent attention. What is kept of a token is its latent and one rotated key, both for all heads.

    A query of a head is nope_dim columns, which a matrix of the head takes to the latent's `rank`, and rope_dim that
    are rotated. `rank` is a multiple of 16, as is `rope_dim`.
    """

    num_heads: int
    nope_dim: int
    rank: int
    rope_dim: int

    @property
    def width(self) -> int:
        """Columns of a cached row: latent | rotated key."""
        return self.rank + self.rope_dim

    @property
    def cached_size(self) -> int:
        return self.width

    @property
    def ops_per_key(self) -> int:
        return 2 * self.num_heads * (self.width + self.rank)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What one layer keeps. `group`: whose block table and slots it uses, of those that a step carries."""

    index: int
    heads: Heads | Latent
    window: int = 0  # keys at a distance below it are seen; 0: all
    chunked: bool = False  # instead those of the query's chunk of `window` positions, which are among them
    group: int = 0


@dataclass(frozen=True, kw_only=True)
class State:
    """What one layer keeps of a sequence, as much whatever its length: float32 of a shape, in the sequence's slot."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Op:
    """Names of the fields with buffers that an operation reads, writes first, or changes in place."""

    reads: ClassVar[tuple[str, ...]] = ("x",)
    writes: ClassVar[tuple[str, ...]] = ("out",)
    changes: ClassVar[tuple[str, ...]] = ()
    #: Whether it must see every row of the step, since later ones depend on each.
    needs_all_rows: ClassVar[bool] = False

    def buffers(self, names: Sequence[str]) -> Iterator[Buffer]:
        for name in names:
            value = getattr(self, name)
            yield from (value,) if isinstance(value, Buffer) else value

    def widths(self) -> _Widths:
        """Its buffers, each with the width that it must have."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Embed(Op):
    """out = scale * weight[token ids], or of the tokens' positions."""

    out: Buffer
    weight: Weight
    scale: float = 1.0
    index: Literal["token_ids", "positions"] = "token_ids"
    reads: ClassVar = ()

    def widths(self) -> _Widths:
        yield self.out, self.weight.shape[1]


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """out = x @ weight.T, plus the bias that the weight was packed with."""

    out: Buffer
    x: Buffer
    weight: Weight

    def widths(self) -> _Widths:
        yield from zip((self.out, self.x), self.weight.shape, strict=True)


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """out = x, normed as `NormKind` says."""

    out: Buffer
    x: Buffer
    weight: Weight
    eps: float
    kind: NormKind = "rms"
    bias: Weight | None = None  # of layer norms

    def widths(self) -> _Widths:
        yield from ((buffer, self.weight.shape[0]) for buffer in (self.out, self.x))


@dataclass(frozen=True, kw_only=True)
class NormParts(Op):
    """Of each row `count` parts of `width` columns, from column `first` on, are normed in place, each by itself.

    `weight` and `bias`: [width] for all parts, or [count * width], of each part its own.
    """

    x: Buffer
    first: int
    count: int
    width: int
    weight: Weight
    eps: float
    kind: NormKind = "rms"
    bias: Weight | None = None
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        yield self.x, max(self.x.width, self.first + self.count * self.width)


@dataclass(frozen=True, kw_only=True)
class Add(Op):
    """residual += x."""

    residual: Buffer
    x: Buffer
    writes: ClassVar = ()
    changes: ClassVar = ("residual",)

    def widths(self) -> _Widths:
        yield self.x, self.residual.width


@dataclass(frozen=True, kw_only=True)
class AddGated(Op):
    """residual += sigmoid(gates) * x, with gates float32 [rows, 1]."""

    residual: Buffer
    x: Buffer
    gates: Buffer
    reads: ClassVar = ("x", "gates")
    writes: ClassVar = ()
    changes: ClassVar = ("residual",)

    def widths(self) -> _Widths:
        yield from ((self.x, self.residual.width), (self.gates, 1))


@dataclass(frozen=True, kw_only=True)
class AddNorm(Op):
    """`Add`, then `Norm` of the residual."""

    out: Buffer
    residual: Buffer
    x: Buffer
    weight: Weight
    eps: float
    kind: NormKind = "rms"
    bias: Weight | None = None
    changes: ClassVar = ("residual",)

    def widths(self) -> _Widths:
        yield from ((buffer, self.weight.shape[0]) for buffer in (self.out, self.residual, self.x))


@dataclass(frozen=True, kw_only=True)
class Clip(Op):
    """x, held between -limit and limit."""

    x: Buffer
    limit: float
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        yield self.x, self.x.width


@dataclass(frozen=True, kw_only=True)
class CacheOp(Op):
    """One that reads or writes what a layer keeps."""

    cache: Cache
    needs_all_rows: ClassVar = True


@dataclass(frozen=True, kw_only=True)
class RopeWrite(CacheOp):
    """Norm of each head of q and k, if there are weights for it; their rotation; then k and v go to the cache.

    `rotation` [positions, head_dim]: cosines | sines; None: positions are told otherwise. `norms_rotated`: the norm
    comes behind the rotation. `q_scales` [positions, 1]: what q is multiplied by in the end.
    """

    qkv: Buffer
    heads: Heads
    rotation: Weight | None
    q_norm: Weight | None = None
    k_norm: Weight | None = None
    eps: float = 0.0
    norms_rotated: bool = False
    q_scales: Weight | None = None
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("qkv",)

    def widths(self) -> _Widths:
        yield self.qkv, self.heads.qkv_size


@dataclass(frozen=True, kw_only=True)
class Attend(CacheOp):
    """out = causal attention of the queries in qkv over the cache, the step's own keys included.

    `slopes` [num_heads]: slope times (key's position - query's) is added to a score (ALiBi). `sinks` [num_heads]: the
    score of one more key, whose value is zero.
    """

    out: Buffer
    qkv: Buffer
    heads: Heads
    scale: float
    softcap: float = 0.0  # 0: none
    slopes: Weight | None = None
    sinks: Weight | None = None
    reads: ClassVar = ("qkv",)

    def widths(self) -> _Widths:
        yield from ((self.out, self.heads.size), (self.qkv, self.heads.qkv_size))


@dataclass(frozen=True, kw_only=True)
class HeadLinear(Op):
    """Each head's part of out = its part of x @ weight[head].T: of the columns that a head has in either, the first."""

    out: Buffer
    x: Buffer
    weight: Weight  # [heads, N, K]

    def widths(self) -> _Widths:
        heads, rows, columns = self.weight.shape
        for buffer, used in ((self.out, rows), (self.x, columns)):
            yield buffer, max(buffer.width // heads, used) * heads


@dataclass(frozen=True, kw_only=True)
class LatentWrite(CacheOp):
    """kv = latent | key: the former normed, the latter rotated, go to the cache. The rotated part of each head's query
    in q goes behind what q_latent has of the head, its query of the latent.

    `rotation` [positions, rope_dim]: cosines | sines.
    """

    q_latent: Buffer
    q: Buffer
    kv: Buffer
    latent: Latent
    rotation: Weight
    norm: Weight
    eps: float
    reads: ClassVar = ("q", "kv")
    writes: ClassVar = ()
    changes: ClassVar = ("q_latent",)

    def widths(self) -> _Widths:
        heads = self.latent.num_heads
        yield self.q_latent, heads * self.latent.width
        yield self.q, heads * (self.latent.nope_dim + self.latent.rope_dim)
        yield self.kv, self.latent.width


@dataclass(frozen=True, kw_only=True)
class LatentAttend(CacheOp):
    """out = for each head the mean of the latents that its query sees, weighted by the softmax of the scores.

    Prompts and single tokens are computed in this one form, so that a row's result is the same however its prompt was
    cut: with keys and values expanded for each head, prompts would take a third of the sums, and round otherwise.
    """

    out: Buffer
    q_latent: Buffer
    latent: Latent
    scale: float
    reads: ClassVar = ("q_latent",)

    def widths(self) -> _Widths:
        yield self.out, self.latent.num_heads * self.latent.rank
        yield self.q_latent, self.latent.num_heads * self.latent.width


@dataclass(frozen=True, kw_only=True)
class StateOp(Op):
    """One that goes on from what a layer keeps of a sequence, and leaves there what the next step goes on from."""

    state: State
    needs_all_rows: ClassVar = True


@dataclass(frozen=True, kw_only=True)
class CausalConv(StateOp):
    """out = a convolution along the sequence, a filter a channel: `weight` [taps, width], the last tap for the token.

    gated: x = b | c | y, out = c * conv(b * y); else out = silu(conv(x)). `state` [taps - 1, width]: the inputs of the
    convolution before the next token, the oldest first; zeros before a sequence's first.
    """

    out: Buffer
    x: Buffer
    weight: Weight
    bias: Weight | None = None
    gated: bool = False

    def widths(self) -> _Widths:
        width = self.weight.shape[1]
        yield from ((self.out, width), (self.x, 3 * width if self.gated else width))


@dataclass(frozen=True, kw_only=True)
class SelectiveScan(StateOp):
    """Mamba's scan. With a step s = softplus(dt) a channel and token, and a rate r = -exp(a_log) a number of its state:
    state = exp(s r) state + s x b, out = (sum over its numbers of state c, plus d x) silu(gate).

    b and c [rows, size] are the same for all channels; `a_log` and `state` [size, width], `d` [width]. Mamba 2's is the
    same by heads, whose channels share steps and rates: dt [rows, heads], `a_log` and `d` [heads]; there may be groups
    of channels, each with its own b and c [rows, groups * size].
    """

    out: Buffer
    x: Buffer
    dt: Buffer
    gate: Buffer
    b: Buffer
    c: Buffer
    a_log: Weight
    d: Weight
    reads: ClassVar = ("x", "dt", "gate", "b", "c")

    def widths(self) -> _Widths:
        size, width = self.state.shape
        yield from ((buffer, width) for buffer in (self.out, self.x, self.gate))
        yield self.dt, self.a_log.shape[-1]
        yield from ((buffer, max(1, self.b.width // size) * size) for buffer in (self.b, self.c))


@dataclass(frozen=True, kw_only=True)
class Act(Op):
    """out = act(gate) * up, where x = gate | up; or, if it is not gated, act(x).

    `parameters` [2]: of xielu; see `reference.act`.
    """

    out: Buffer
    x: Buffer
    kind: Activation
    gated: bool = True
    parameters: Weight | None = None

    def widths(self) -> _Widths:
        yield self.x, self.out.width * (2 if self.gated else 1)


@dataclass(frozen=True, kw_only=True)
class Route(Op):
    """The experts of each row and their weights, as `Routing` says. ids int32 [rows, k], weights float32 [rows, k],
    scores float32 [rows, num_experts], bias float32 [num_experts]."""

    ids: Buffer
    weights: Buffer
    scores: Buffer
    routing: Routing = Routing()
    bias: Weight | None = None
    reads: ClassVar = ("scores",)
    writes: ClassVar = ("ids", "weights")

    def widths(self) -> _Widths:
        yield self.weights, self.ids.width


@dataclass(frozen=True, kw_only=True)
class Experts(Op):
    """out = the sum over a row's experts, in the order of `ids`, of weight * down(act(gate(x)) * up(x)).

    Not `gated`: of weight * down(act(up(x))). `scales_input`: the weight multiplies x, and not what comes out.

    Rows are computed grouped by expert. `places` int32 [rows, k] says where in the groups they went; `grouped`,
    `gate_up` and `act` hold k of their rows a row: what goes into the groups and comes out, and what is between.
    Weights: gate_up [num_experts, 2 inner, width] (inner, if not gated), down [num_experts, width, inner].
    """

    out: Buffer
    x: Buffer
    ids: Buffer
    weights: Buffer
    gate_up_weight: Weight
    down_weight: Weight
    kind: Activation
    places: Buffer
    grouped: Buffer
    gate_up: Buffer
    act: Buffer
    gated: bool = True
    scales_input: bool = False
    reads: ClassVar = ("x", "ids", "weights")
    writes: ClassVar = ("out", "places", "grouped", "gate_up", "act")

    @property
    def top_k(self) -> int:
        return self.ids.width

    def widths(self) -> _Widths:
        _, columns, width = self.gate_up_weight.shape
        _, rows, inner = self.down_weight.shape
        yield self.act, self.gate_up.width // (2 if self.gated else 1)
        yield from ((buffer, width) for buffer in (self.out, self.x))
        yield from ((buffer, self.top_k) for buffer in (self.weights, self.places))
        yield self.out, rows
        yield self.grouped, self.top_k * width
        yield self.gate_up, self.top_k * columns
        yield self.act, self.top_k * inner


@dataclass(frozen=True, kw_only=True)
class KeepRows(Op):
    """From here on only the rows that the step names are computed: they move to the front of `rows`, in their order."""

    rows: tuple[Buffer, ...]
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("rows",)

    def widths(self) -> _Widths:
        yield from ((buffer, buffer.width) for buffer in self.rows)


class ProgramError(Exception):
    """A program that cannot be run: a mistake in a family's file or in a rewrite, never the user's."""


@dataclass(frozen=True, eq=False)
class Program:
    """The operations of a step in order, and the buffer that holds its result at the end."""

    ops: tuple[Op, ...]
    output: Buffer

    @cached_property
    def lives(self) -> dict[Buffer, tuple[int, int]]:
        """Of each buffer, in the order of writing: the operation that writes it and the last one that uses it. What
        the output holds is used behind the end."""
        lives: dict[Buffer, tuple[int, int]] = {}
        for at, op in enumerate(self.ops):
            for buffer in op.buffers(op.writes):
                lives[buffer] = at, at
            for buffer in op.buffers((*op.reads, *op.changes)):
                lives[buffer] = lives[buffer][0], at
        lives[self.output] = lives[self.output][0], len(self.ops)
        return lives

    @cached_property
    def caches(self) -> tuple[Cache, ...]:
        """By their index."""
        found = {op.cache.index: op.cache for op in self.ops if isinstance(op, CacheOp)}
        return tuple(found[index] for index in sorted(found))

    @cached_property
    def states(self) -> tuple[State, ...]:
        """By their index."""
        found = {op.state.index: op.state for op in self.ops if isinstance(op, StateOp)}
        return tuple(found[index] for index in sorted(found))

    def check(self) -> None:
        """Prove that the widths fit, that each buffer is written once and before it is used, and that no operation
        behind `KeepRows` reads rows that were left behind. Raises `ProgramError`."""
        written: set[Buffer] = set()
        stale: set[Buffer] = set()
        for at, op in enumerate(self.ops):
            where = f"operation {at}, {type(op).__name__}"
            for buffer in op.buffers((*op.reads, *op.changes)):
                if buffer not in written:
                    raise ProgramError(f"{where}: {buffer.name} is used before it is written")
                if buffer in stale:
                    raise ProgramError(f"{where}: {buffer.name} has rows that were not kept")
            for buffer in op.buffers(op.writes):
                if buffer in written:
                    raise ProgramError(f"{where}: {buffer.name} has been written by another operation")
                written.add(buffer)
            for buffer, width in op.widths():
                if buffer.width != width:
                    raise ProgramError(f"{where}: {buffer.name} is {buffer.width} wide, not {width}")
            if isinstance(op, KeepRows):
                stale = written - set(op.rows)
            elif stale and op.needs_all_rows:
                raise ProgramError(f"{where}: it needs the rows that were not kept")
        if self.output not in written or self.output in stale:
            raise ProgramError(f"the result, {self.output.name}, is not there at the end")
        if [cache.index for cache in self.caches] != list(range(len(self.caches))):
            raise ProgramError("the caches are not numbered from 0 on")
        if [state.index for state in self.states] != list(range(len(self.states))):
            raise ProgramError("the states are not numbered from 0 on")


def program(ops: Sequence[Op], output: Buffer) -> Program:
    """The program of operations as blocks write them: sums joined with the norms behind them, and rows that nobody
    wants dropped as soon as no other row depends on them."""
    made = Program(_with_kept_rows(Program(tuple(_joined(ops)), output)), output)
    made.check()
    return made


def _joined(ops: Sequence[Op]) -> Iterator[Op]:
    """`Add` and a `Norm` of its sum right behind it become one pass over the row."""
    before: Op | None = None
    for op in ops:
        if isinstance(before, Add) and isinstance(op, Norm) and op.x is before.residual:
            before = AddNorm(
                out=op.out, residual=op.x, x=before.x, weight=op.weight, eps=op.eps, kind=op.kind, bias=op.bias
            )
            continue
        if before is not None:
            yield before
        before = op
    if before is not None:
        yield before


def _with_kept_rows(made: Program) -> tuple[Op, ...]:
    """The ops, with `KeepRows` of all that is in use behind the last one that needs all rows."""
    last = max(at for at, op in enumerate(made.ops) if op.needs_all_rows)
    live = tuple(buffer for buffer, (first, end) in made.lives.items() if first <= last < end)
    return (*made.ops[: last + 1], KeepRows(rows=live), *made.ops[last + 1 :])
