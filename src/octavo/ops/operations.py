"""The operations that programs are made of.

An operation names what it reads and writes; it holds no tensor. Its weights are names too, which the loader binds to
what the table packed. Rows of all buffers are the step's tokens; behind `KeepRows`, those whose results somebody wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from octavo.ops.operands import Buffer, Cache, Heads, KeyBlocks, Latent, State, Weight
from octavo.ops.routing import Routing

#: rms: x / sqrt(mean(x^2) + eps) * weight. layer: the same of x - mean(x), plus a bias if there is one.
NormKind = Literal["rms", "layer"]
#: gelu: by the error function.
#: quick_gelu: x * sigmoid(1.702 x). relu2: relu(x)^2. xielu: of Apertus, with two parameters (`Act`).
#: swiglu_oai, of GPT-OSS, and gegelu, of Phi-3-small: gated only, more than a factor of `up`: `reference.act_mul`.
Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "quick_gelu", "relu2", "xielu", "swiglu_oai", "gegelu"]
#: silu: x * sigmoid(x).
GateKind = Literal["sigmoid", "silu"]
#: How several rows become one.
MergeKind = Literal["rows", "columns", "mean"]
_Widths = Iterator[tuple[Buffer, int]]


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
    """out = scale * weight[token ids], or of the tokens' positions. Ids that have no row stand for row 0."""

    out: Buffer
    weight: Weight
    scale: float = 1.0
    index: Literal["token_ids", "positions"] = "token_ids"
    is_partial: bool = False  # there are ids without a row
    reads: ClassVar = ()

    def widths(self) -> _Widths:
        yield self.out, self.weight.shape[1]


@dataclass(frozen=True, kw_only=True)
class GivenRows(Op):
    """out = the rows that the step brings in the place of tokens."""

    out: Buffer
    reads: ClassVar = ()

    def widths(self) -> _Widths:
        yield self.out, self.out.width


@dataclass(frozen=True, kw_only=True)
class ReplaceRows(Op):
    """Rows of x are those that the step brings, if it brings some: of `replaced_rows` the columns from `first` on, at
    `replaced_index`. `adds`: they are added to what x has."""

    x: Buffer
    first: int = 0
    adds: bool = False
    needs_all_rows: ClassVar = True
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        yield self.x, self.x.width


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """out = x @ weight.T, plus the bias that the weight was packed with."""

    out: Buffer
    x: Buffer
    weight: Weight

    def widths(self) -> _Widths:
        yield from zip((self.out, self.x), self.weight.shape, strict=True)


@dataclass(frozen=True, kw_only=True)
class LoraDelta(Op):
    """What adapters add to out = x @ weight.T, row by row; `lora.bank_name` says where they are."""

    out: Buffer
    x: Buffer
    weight: Weight
    writes: ClassVar = ()
    changes: ClassVar = ("out",)

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
class Gate(Op):
    """x *= sigmoid(gates), or silu(gates), which are as many."""

    x: Buffer
    gates: Buffer
    kind: GateKind
    reads: ClassVar = ("gates",)
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        yield self.x, self.gates.width


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
    comes behind the rotation. `q_scales` [positions, 1]: what q is multiplied by in the end. Without heads of keys,
    there is only q: nothing is written.
    """

    qkv: Buffer
    heads: Heads
    rotation: Weight | None
    q_norm: Weight | None = None
    k_norm: Weight | None = None
    eps: float = 0.0
    norms_rotated: bool = False
    q_scales: Weight | None = None
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar = ()
    changes: ClassVar = ("qkv",)

    def widths(self) -> _Widths:
        yield self.qkv, self.heads.qkv_size


@dataclass(frozen=True, kw_only=True)
class GatherRotation(Op):
    """out float32 = the rotation of each row, whose position has several parts: what belongs to pair i of a head stands
    in the table's row of the part `parts[i]`. `rotation` [positions, head_dim]: cosines | sines.

    places int32 [rows, 1] = 0, 1, ...: the row of out that is a row's. Where the step brings no parts, all of them are
    its position.
    """

    out: Buffer
    places: Buffer
    rotation: Weight
    parts: tuple[int, ...]
    reads: ClassVar = ()
    writes: ClassVar = ("out", "places")

    def widths(self) -> _Widths:
        yield from ((self.out, self.rotation.shape[1]), (self.out, 2 * len(self.parts)), (self.places, 1))

    def runs(self) -> list[tuple[int, int, int]]:
        """Pairs behind each other of one part: part, first pair, number."""
        firsts = [i for i, part in enumerate(self.parts) if not i or part != self.parts[i - 1]]
        ends = [*firsts[1:], len(self.parts)]
        return [(self.parts[first], first, end - first) for first, end in zip(firsts, ends, strict=True)]


@dataclass(frozen=True, kw_only=True)
class RopeWriteRows(RopeWrite):
    """`RopeWrite` with what a `GatherRotation` wrote in the place of a table and positions."""

    rotations: Buffer
    places: Buffer
    reads: ClassVar = ("rotations", "places")


@dataclass(frozen=True, kw_only=True)
class Attend(CacheOp):
    """out = attention of the queries that rows of qkv begin with over the cache, the step's own keys included.

    causal: a row sees the keys up to its own; with `reads_key_ends` those before its end among the step's `key_ends`,
    if the step has some. Else a row sees all keys of its sequence: of the step's seq_lens, of `encoder_lens` where the
    cache is an encoder's; and where the cache has a window, those at a distance below it, to both sides.
    `slopes` [num_heads]: slope times (key's position - query's) is added to a score (ALiBi), or where rows are not
    causal minus slope times the distance. `biases` [num_heads, 2 R + 1]: what is added to a score by (key's position -
    query's) from -R to R; what lies further away has that of the first or the last.
    `sinks` [num_heads]: the score of one more key, whose value is zero. `blocks`: a head sees some blocks of keys only;
    rows are causal then, without ends of their own, and the cache has no window. Where the keys are another layer's,
    qkv may be queries alone.
    """

    out: Buffer
    qkv: Buffer
    heads: Heads
    scale: float
    softcap: float = 0.0  # 0: none
    slopes: Weight | None = None
    biases: Weight | None = None
    sinks: Weight | None = None
    causal: bool = True
    reads_key_ends: bool = False
    blocks: KeyBlocks | None = None
    reads: ClassVar = ("qkv",)

    def widths(self) -> _Widths:
        is_q = self.cache.of_encoder or self.qkv.width == self.heads.size
        yield self.out, self.heads.size
        yield self.qkv, self.heads.size if is_q else self.heads.qkv_size


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
class GatedDelta(StateOp):
    """The gated delta rule: a head's state [key_dim, value_dim] forgets, is corrected where its key points, and read:

    state *= exp(-exp(a_log) softplus(a)); state += k (beta (v - k state)); out = q state.

    qkv = q | k | v, of which q and k come by `num_key_heads` and are brought to length 1, q also divided by the root of
    key_dim. gates = b | a, a number a head each; beta = `beta_scale` sigmoid(b). `state` [heads, key_dim, value_dim],
    `a_log` [heads]. Head h reads key head h * num_key_heads // heads, or, `tiled`, h % num_key_heads.
    """

    out: Buffer
    qkv: Buffer
    gates: Buffer
    a_log: Weight
    num_key_heads: int
    tiled: bool = False
    beta_scale: float = 1.0
    reads: ClassVar = ("qkv", "gates")

    def widths(self) -> _Widths:
        heads, key_dim, value_dim = self.state.shape
        yield self.out, heads * value_dim
        yield self.qkv, 2 * self.num_key_heads * key_dim + heads * value_dim
        yield self.gates, 2 * heads


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
    scores float32 [rows, num_experts], bias float32 [num_experts]. `scales` float32 [num_experts]: an expert's weight
    is multiplied by its own in the end."""

    ids: Buffer
    weights: Buffer
    scores: Buffer
    routing: Routing = Routing()
    bias: Weight | None = None
    scales: Weight | None = None
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
    `has_adapters`: both products may have what adapters add to them; `lora.bank_name` says where it is.
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
    has_adapters: bool = False
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


@dataclass(frozen=True, kw_only=True)
class MergeRows(Op):
    """From here on a row is `count` rows of x, one behind the other: row i of out is count i .. count (i + 1) - 1.

    kind: their columns beside each other, row by row or column by column, or their mean.
    """

    out: Buffer
    x: Buffer
    count: int
    kind: MergeKind = "rows"

    def widths(self) -> _Widths:
        yield self.out, self.x.width * (1 if self.kind == "mean" else self.count)
