"""What each operation of a step means, in plain torch float32. Slow, obvious, and the judge of all other versions.

Shapes: T tokens in the step, B sequences, H hidden, D head_dim, Hq / Hkv query and key-value heads. All outputs
are allocated by the caller. Sampling stands in `reference_sampling`.

The paged KV cache has one layout for all implementations, so that they can be mixed and compared:

    k_cache [num_blocks, Hkv, block_size / 16, D, 16]     16 keys side by side: a kernel scores them in one go
    v_cache [num_blocks, Hkv, block_size, Dv]             Dv = D rounded up to 16, the rest is zero

and that of a latent attention, one array: [num_blocks, block_size, rank + rope_dim].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.ops.experts import grouped_experts, linear_of_heads
from octavo.ops.operands import Latent
from octavo.ops.operations import GateKind
from octavo.ops.routing import Routing
from octavo.ops.run import Runner
from octavo.ops.step import NoPlanner
from octavo.quant.packed import QuantizedWeight, as_floats

#: Keys in a tile of the K cache; block sizes are multiples of it.
KEY_TILE = 16
#: Under the root where the gated delta rule brings q and k to length 1.
DELTA_EPS = 1e-6
#: Behind a tile of int8: a float32 for each of its keys.
TILE_SCALE_BYTES = 4 * KEY_TILE


@dataclass(frozen=True, eq=False)
class ReferenceWeight:
    """A matrix in float32, [N, K], with its bias [N] if it has one."""

    weight: Tensor
    bias: Tensor | None

    @property
    def N(self) -> int:
        return self.weight.shape[0]

    @property
    def K(self) -> int:
        return self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def kind(self) -> str:
        return "float32"


def _dense(weight: Tensor | QuantizedWeight) -> Tensor:
    return as_floats(weight).to(torch.float32)


def pack_linear(weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> ReferenceWeight:
    return ReferenceWeight(_dense(weight), None if bias is None else bias.to(torch.float32))


def pack_output(weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> ReferenceWeight:
    """The matrix of the output layer. A table that quantizes what it packs leaves this one in its type."""
    return pack_linear(weight, bias)


def pack_linear_many(
    weights: Sequence[Tensor | QuantizedWeight], biases: Sequence[Tensor | None] | None = None
) -> ReferenceWeight:
    """Stack [N_i, K] along N. A part without a bias has a bias of zero if another has one."""
    parts = [_dense(weight) for weight in weights]
    given = list(biases) if biases is not None else [None] * len(parts)
    if all(bias is None for bias in given):
        return ReferenceWeight(torch.cat(parts), None)
    full = [
        torch.zeros(len(part)) if bias is None else bias.to(torch.float32)
        for part, bias in zip(parts, given, strict=True)
    ]
    return ReferenceWeight(torch.cat(parts), torch.cat(full))


def linear(out: Tensor, x: Tensor, w: ReferenceWeight) -> None:
    """out [T, N] = x [T, K] @ w.T + bias. out's rows may lie apart."""
    out.copy_(F.linear(x, w.weight, w.bias))


def pack_embedding(weight: Tensor | QuantizedWeight) -> ReferenceWeight:
    return ReferenceWeight(_dense(weight), None)


def tied_embedding(weight: ReferenceWeight) -> ReferenceWeight:
    """The table whose rows are those of a packed linear weight, without a copy."""
    return weight


def embedding(out: Tensor, ids: Tensor, w: ReferenceWeight, scale: float = 1.0) -> None:
    """out [T, H] = scale * w[ids]; ids int32 [T]."""
    torch.mul(w.weight[ids.long()], scale, out=out)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """out [T, H] = x / sqrt(mean(x^2) + eps) * weight. out may be x."""
    out.copy_(_normed(x, weight, eps))


def add_rms_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """residual += x; out = rms_norm(residual)."""
    residual.add_(x)
    out.copy_(_normed(residual, weight, eps))


def layer_norm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    """out [T, H] = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias. out may be x."""
    out.copy_(F.layer_norm(x, weight.shape, weight, bias, eps))


def add_layer_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    """residual += x; out = layer_norm(residual)."""
    residual.add_(x)
    layer_norm(out, residual, weight, bias, eps)


def norm_parts_(
    x: Tensor, first: int, count: int, width: int, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> None:
    """x [T, N], in place: each of the `count` parts of `width` columns from `first` on becomes its norm.

    kind: an `ops.operations.NormKind`; weight, and bias of layer norms: [width] for all parts, or [count * width].
    """
    parts = x[:, first : first + count * width].view(len(x), count, width)
    normed = _normed(parts, weight.view(-1, width), eps) if kind == "rms" else F.layer_norm(parts, (width,), eps=eps)
    if kind == "layer":
        normed = normed * weight.view(-1, width)
        normed = normed if bias is None else normed + bias.view(-1, width)
    parts.copy_(normed)


def add_(residual: Tensor, x: Tensor) -> None:
    """residual += x."""
    residual.add_(x)


def add_gated_(residual: Tensor, x: Tensor, gates: Tensor) -> None:
    """residual += sigmoid(gates) * x; gates float32 [T, 1]."""
    residual.addcmul_(gates.sigmoid(), x)


def act_mul(out: Tensor, gate_up: Tensor, kind: str) -> None:
    """out [T, I] = act(gate) * up, with gate_up [T, 2 I] = gate | up.

    swiglu_oai: gate * sigmoid(1.702 gate) * (up + 1), with gate cut to at most 7, and up to what lies within 7 of zero.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if kind == "swiglu_oai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        torch.mul(gate * torch.sigmoid(1.702 * gate), up + 1, out=out)
        return
    torch.mul(activated(gate, kind), up, out=out)


def act(out: Tensor, x: Tensor, kind: str, parameters: Tensor | None = None) -> None:
    """out [T, I] = act(x).

    xielu: ap x^2 + x / 2 for x > 0, else an (e^min(x, -1e-6) - 1 - x) + x / 2, where the parameters, float32 [2], are
    those whose softplus is ap, and an - 1/2.
    """
    if kind == "xielu":
        assert parameters is not None
        positive, negative = F.softplus(parameters).unbind()
        below = (torch.expm1(x.clamp(max=-1e-6)) - x) * (0.5 + negative) + 0.5 * x
        out.copy_(torch.where(x > 0, positive * x * x + 0.5 * x, below))
        return
    out.copy_(activated(x, kind))


def activated(x: Tensor, kind: str) -> Tensor:
    """act(x) of the kinds without parameters."""
    match kind:
        case "silu":
            return F.silu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "gelu":
            return F.gelu(x)
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
    raise ValueError(kind)


def pack_experts(
    experts: Iterable[tuple[Sequence[Tensor | QuantizedWeight], Sequence[Tensor | None]]],
) -> tuple[ReferenceWeight, ...]:
    """For each expert its matrices, [N_i, K] one below the other, and their biases."""
    return tuple(pack_linear_many(*each) for each in experts)


def route(
    ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    routing: Routing,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """The k experts of each row, and their weights, as `Routing` says.

    scores float32 [T, E]; ids int32 [T, k]; weights float32 [T, k]; bias float32 [E]. scales float32 [E]: an expert's
    weight is multiplied by its own in the end.
    """
    order = _values(scores, routing, bias).argsort(dim=-1, descending=True, stable=True)[:, : ids.shape[1]]
    ids.copy_(order)
    chosen = scores.gather(1, order)
    match routing.kind:
        case "softmax" if routing.renormalize:
            # The exponentials' common divisor is no part of the quotient.
            found = chosen.softmax(-1)
        case "softmax":
            found = (chosen - scores.logsumexp(-1, keepdim=True)).exp()
        case "sigmoid":
            found = chosen.sigmoid()
            found = found / (found.sum(-1, keepdim=True) + 1e-20) if routing.renormalize else found
        case "sparsemixer":
            found = _sparsemixed(scores, order, 2 * routing.jitter)
    found = found * routing.factor
    weights.copy_(found if scales is None else found * scales[order])


def _values(scores: Tensor, routing: Routing, bias: Tensor | None) -> Tensor:
    """What experts are chosen by; -inf in groups that cannot be."""
    if bias is None and routing.num_groups == 1:
        return scores
    values = scores.sigmoid() if routing.kind == "sigmoid" else scores.softmax(-1)
    values = values if bias is None else values + bias
    if routing.num_groups == 1:
        return values
    grouped = values.view(len(values), routing.num_groups, -1)
    worth = grouped.sort(-1, descending=True).values[:, :, : routing.group_best].sum(-1)
    best = worth.argsort(dim=-1, descending=True, stable=True)[:, : routing.top_groups]
    closed = torch.ones_like(worth, dtype=torch.bool).scatter(1, best, False)
    return grouped.masked_fill(closed.unsqueeze(-1), -math.inf).flatten(1)


def _sparsemixed(scores: Tensor, order: Tensor, margin: float) -> Tensor:
    """The weights of the experts `order` [T, k]."""
    left, weights = scores.clone(), []
    for place in range(order.shape[1]):
        chosen = order[:, place : place + 1]
        best = scores.gather(1, chosen)
        is_far = (best - scores) / scores.abs().maximum(best) > margin
        weights.append(1 / (left - best).exp().masked_fill(is_far, 0).sum(-1, keepdim=True))
        left.scatter_(1, chosen, -math.inf)
    return torch.cat(weights, dim=1)


#: Grouped by expert: see `grouped_experts`.
experts = partial(grouped_experts, linear, act_mul, act)


def soft_cap_(x: Tensor, cap: float) -> None:
    """x = cap * tanh(x / cap), float32."""
    # Row by row: where torch cuts a tensor into vectors must not depend on the number of rows.
    for row in x:
        row.div_(cap).tanh_().mul_(cap)


def resolve_ids(ids: Tensor, last_ids: Tensor) -> None:
    """ids int32 [T], in place: -1 - slot becomes last_ids[slot], int32, which was sampled there last.

    Where nothing could be sampled, -1, it becomes 0: the step is in vain, and reads nothing that is not there.
    """
    ids.copy_(torch.where(ids < 0, last_ids[(-1 - ids).clamp(min=0)].clamp(min=0), ids))


def kv_cache_shapes(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of k_cache and v_cache. block_size is a multiple of 16.

    int8: behind the codes of each 16 keys, and of their values, lie their scales, float32. What is cached is a code
    times the scale of its token and head, which is the largest magnitude there, divided by 127.
    """
    assert block_size % KEY_TILE == 0, f"block size {block_size} is not a multiple of {KEY_TILE}"
    padded = -(-head_dim // KEY_TILE) * KEY_TILE
    tiles = block_size // KEY_TILE
    if dtype == torch.int8:
        k_rows = head_dim + TILE_SCALE_BYTES // KEY_TILE
        k_shape = (num_blocks, num_kv_heads, tiles, k_rows, KEY_TILE)
        return k_shape, (num_blocks, num_kv_heads, tiles, KEY_TILE * padded + TILE_SCALE_BYTES)
    return (num_blocks, num_kv_heads, tiles, head_dim, KEY_TILE), (num_blocks, num_kv_heads, block_size, padded)


def clip_(x: Tensor, limit: float) -> None:
    """x = x, held between -limit and limit."""
    x.clamp_(-limit, limit)


def gate_(x: Tensor, gates: Tensor, kind: GateKind) -> None:
    """x *= sigmoid(gates), or silu(gates); both [T, W]."""
    opened = torch.sigmoid(gates.float()) if kind == "sigmoid" else F.silu(gates.float())
    x.copy_(x.float() * opened)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos, sin [T, 1, D / 2]: the halves of a head are the pairs (neox)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_kv_write(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    norms_rotated: bool = False,
    q_scales: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Norm (if given, per head) and rotate (if cos_sin is) q and k inside qkv; then write k and v to the cache's slots.

    qkv float32 [T, (Hq + 2 Hkv) * D]; positions int32 [T]; cos_sin float32 [max_pos, D] = cos | sin;
    slot_mapping int64 [T] = block * block_size + offset. norms_rotated: the norm comes behind the rotation. q_scales
    float32 [max_pos, 1]: what q is multiplied by in the end. num_kv_heads 0: there is only q, and nothing is written.
    k_scale, v_scale: what a float8 cache divides k and v by; what is then beyond its largest value becomes that.
    """
    q, k, v = _heads(qkv, num_heads, num_kv_heads, head_dim)
    for part, norm in ((q, q_norm), (k, k_norm)):
        if norm is not None and not norms_rotated:
            part.copy_(_normed(part, norm, eps))
        if cos_sin is not None:
            cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
            part.copy_(_rotated(part, cos, sin))
        if norm is not None and norms_rotated:
            part.copy_(_normed(part, norm, eps))
    if q_scales is not None:
        q.mul_(q_scales[positions.long()].unsqueeze(1))
    if num_kv_heads == 0:
        return
    block_size = k_cache.shape[2] * KEY_TILE
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    tiles, keys = offsets // KEY_TILE, offsets % KEY_TILE
    if k_cache.dtype == torch.int8:
        k_codes, k_scales = _tile_parts(k_cache.flatten(3))
        v_codes, v_scales = _tile_parts(v_cache)
        _split_last(k_codes, head_dim, KEY_TILE)[blocks, :, tiles, :, keys], k_scales[blocks, :, tiles, keys] = _int8(k)
        v_padded = F.pad(v, (0, v_codes.shape[-1] // KEY_TILE - head_dim))
        _split_last(v_codes, KEY_TILE, -1)[blocks, :, tiles, keys], v_scales[blocks, :, tiles, keys] = _int8(v_padded)
        return
    k_cache[blocks, :, tiles, :, keys] = _cached(k, k_cache.dtype, k_scale)
    v_cache[blocks, :, offsets] = _cached(F.pad(v, (0, v_cache.shape[3] - head_dim)), v_cache.dtype, v_scale)


def _cached(x: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """As a cache of floats holds it."""
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        x = (x * (1.0 / torch.tensor(scale))).clamp(-largest, largest)
    return x.to(dtype)


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, as x, and a scale for each of its rows, NaN where one is not finite."""
    high = x.abs().amax(dim=-1)
    is_finite = x.isfinite().all(dim=-1)
    scales = torch.where(is_finite, high / 127.0, math.nan)
    # A quotient of tensors: torch multiplies a number by the reciprocal, which rounds twice.
    inverse = torch.where(is_finite & (scales > 0), torch.full_like(high, 127.0) / high, 0.0)
    codes = torch.where(is_finite[..., None], x * inverse[..., None], 0.0)
    return codes.round().to(torch.int8), scales


def _tile_parts(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Views of int8 tiles [..., bytes]: codes [..., bytes of the codes], and scales float32 [..., 16]."""
    size = tiles.shape[-1] - TILE_SCALE_BYTES
    return tiles[..., :size], tiles[..., size:].view(torch.float32)


def _split_last(x: Tensor, *sizes: int) -> Tensor:
    """A view whose last dimensions have these sizes; -1: what is left."""
    return x.view(*x.shape[:-1], *sizes)


def _heads(qkv: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q [T, Hq, D], k and v [T, Hkv, D]."""
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
    end_q, end_k = num_heads, num_heads + num_kv_heads
    return heads[:, :end_q], heads[:, end_q:end_k], heads[:, end_k:]


def attention(
    out: Tensor,
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    *,
    chunked: bool = False,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    causal: bool = True,
    key_ends: Tensor | None = None,
    plan: None = None,
) -> None:
    """Attention of each sequence's last tokens over its cached context, their own keys included.

    out float32 [T, Hq * D]; qkv [T, Hq * D or more], queries first; block_tables int32 [B, max_blocks]; seq_lens
    int32 [B], the context with this step's tokens; query_start_loc int32 [B + 1]. window > 0: keys at a distance <
    window are seen; if `chunked`, only those of the query's chunk, which begins at a multiple of window. softcap > 0:
    scores become softcap * tanh(score / softcap). slopes float32 [Hq]: slope * (key's position - query's) is added
    to a score. sinks float32 [Hq]: the score of one more key, whose value is zero. Slots at or beyond seq_len may hold
    anything. key_ends int32 [T]: a row sees the keys before its end, and not only those up to its own; it lies behind
    its position, not behind seq_len, and never falls within a sequence. Not causal: each row sees all seq_len keys, of
    which there is at least one, and need not be one of them; there are no windows, slopes and ends of rows then.
    k_scale, v_scale: of a float8 cache. plan: what `attention_planner` made of the step, here nothing.
    """
    assert causal or not (window or slopes is not None or key_ends is not None)
    q_all = qkv[:, : num_heads * head_dim].view(len(qkv), num_heads, head_dim)
    out_all = out.view(len(out), num_heads, head_dim)
    starts = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        k, v = _gather(k_cache, v_cache, block_tables[i], seq_len, head_dim)
        k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=0) for x in (k * k_scale, v * v_scale))
        scores = torch.einsum("thd,hsd->hts", q_all[rows], k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        num_queries = rows.stop - rows.start
        distance = torch.arange(seq_len - num_queries, seq_len)[:, None] - torch.arange(seq_len)[None, :]
        if slopes is not None:
            scores = scores - slopes[:, None, None] * distance
        unseen = distance < 0 if causal else torch.zeros_like(distance, dtype=torch.bool)
        if key_ends is not None:
            unseen = torch.arange(seq_len) >= key_ends[rows, None]
        if window:
            positions = torch.arange(seq_len - num_queries, seq_len)
            unseen |= distance >= (positions % window + 1)[:, None] if chunked else distance >= window
        scores = scores.masked_fill(unseen, -math.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.view(-1, 1, 1).expand(-1, num_queries, 1)), dim=-1)
        probs = scores.softmax(dim=-1)[..., :seq_len]
        out_all[rows] = torch.einsum("hts,hsd->thd", probs, v)


def _gather(
    k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_len: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """float32 [Hkv, seq_len, D] keys and values of one sequence."""
    blocks = block_table[: -(-seq_len // (k_cache.shape[2] * KEY_TILE))].long()
    num_kv_heads = k_cache.shape[1]
    if k_cache.dtype == torch.int8:
        k_codes, k_scales = _tile_parts(k_cache[blocks].flatten(3))
        v_codes, v_scales = _tile_parts(v_cache[blocks])
        k = _split_last(k_codes, head_dim, KEY_TILE).transpose(-1, -2) * k_scales[..., None]
        v = _split_last(v_codes, KEY_TILE, -1) * v_scales[..., None]
        k, v = (x.transpose(0, 1).flatten(1, 3)[:, :seq_len, :head_dim] for x in (k, v))
        return k, v
    k = k_cache[blocks].permute(1, 0, 2, 4, 3).reshape(num_kv_heads, -1, head_dim)
    v = v_cache[blocks].permute(1, 0, 2, 3).reshape(num_kv_heads, -1, v_cache.shape[3])
    return k[:, :seq_len].float(), v[:, :seq_len, :head_dim].float()


def causal_conv(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    gated: bool,
) -> None:
    """out [T, W] = c * conv(b * y), with x [T, 3 W] = b | c | y, if `gated`; else silu(conv(x)), x [T, W].

    weight float32 [taps, W], the last for the token itself; bias [W]; state float32 [slots, taps - 1, W], changed: the
    inputs of the convolution before the next token of a slot. slots int32 [B]; positions int32 [T]: a sequence whose
    first row is at 0 begins with zeros; query_start_loc int32 [B + 1].
    """
    starts, taps = query_start_loc.tolist(), len(weight)
    for i, slot in enumerate(slots.tolist()):
        rows = slice(starts[i], starts[i + 1])
        if rows.start == rows.stop:
            continue
        gates, values = None, x[rows].float()
        if gated:
            before, gates, values = values.chunk(3, dim=-1)
            values = before * values
        kept = state[slot] if positions[rows.start] > 0 else torch.zeros_like(state[slot])
        inputs = torch.cat((kept, values))
        sums = F.conv1d(inputs.t()[None], weight.t()[:, None], bias, groups=weight.shape[1])[0].t()
        out[rows] = (F.silu(sums) if gates is None else gates * sums).to(out.dtype)
        state[slot] = inputs[len(inputs) - taps + 1 :]


def selective_scan(
    out: Tensor,
    x: Tensor,
    dt: Tensor,
    gate: Tensor,
    b: Tensor,
    c: Tensor,
    a_log: Tensor,
    d: Tensor,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
) -> None:
    """out [T, W] as `operations.SelectiveScan` says.

    x, dt, gate [T, W]; b, c [T, N]; a_log float32 [N, W]; d float32 [W]; state float32 [slots, N, W], changed;
    slots int32 [B]; positions int32 [T]: a sequence whose first row is at 0 begins with zeros;
    query_start_loc int32 [B + 1]. By heads: dt [T, heads], a_log and d [heads], and b, c [T, groups * N].
    """
    size, width = state.shape[1:]
    of_head = width // dt.shape[1]  # channels; 1: each has its own
    starts, rates, d = (
        query_start_loc.tolist(),
        -a_log.exp().repeat_interleave(of_head, -1),
        d.repeat_interleave(of_head),
    )
    b, c = (each.float().view(len(each), -1, size).transpose(1, 2) for each in (b, c))
    of_group = width // b.shape[2]
    for i, slot in enumerate(slots.tolist()):
        for row in range(starts[i], starts[i + 1]):
            before = state[slot] if positions[row] > 0 else torch.zeros_like(state[slot])
            step, value = F.softplus(dt[row].float()).repeat_interleave(of_head), x[row].float()
            state[slot] = (step * rates).exp() * before + step * value * b[row].repeat_interleave(of_group, 1)
            total = (state[slot] * c[row].repeat_interleave(of_group, 1)).sum(0) + d * value
            out[row] = (total * F.silu(gate[row].float())).to(out.dtype)


def gated_delta(
    out: Tensor,
    qkv: Tensor,
    gates: Tensor,
    a_log: Tensor,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    num_key_heads: int,
    tiled: bool = False,
    beta_scale: float = 1.0,
) -> None:
    """out [T, H * V] as `operations.GatedDelta` says.

    qkv [T, 2 * num_key_heads * K + H * V]; gates [T, 2 * H]; a_log float32 [H];
    state float32 [slots, H, K, V], changed; slots int32 [B];
    positions int32 [T]: a sequence whose first row is at 0 begins with zeros;
    query_start_loc int32 [B + 1].
    """
    num_heads, key_dim, value_dim = state.shape[1:]
    keys, of_key = num_key_heads * key_dim, num_heads // num_key_heads

    def unit(x: Tensor) -> Tensor:
        """[T, H, K]: of each head that of its key head, at length 1."""
        heads = x.view(-1, num_key_heads, key_dim)
        heads = heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + DELTA_EPS)
        return heads.repeat(1, of_key, 1) if tiled else heads.repeat_interleave(of_key, 1)

    q, k, v = torch.split(qkv.float(), [keys, keys, num_heads * value_dim], dim=1)
    q, k, v = unit(q) * key_dim**-0.5, unit(k), v.view(-1, num_heads, value_dim)
    b, a = gates.float().chunk(2, dim=1)
    decays, betas = (-a_log.exp() * F.softplus(a)).exp(), beta_scale * torch.sigmoid(b)
    starts = query_start_loc.tolist()
    for i, slot in enumerate(slots.tolist()):
        for row in range(starts[i], starts[i + 1]):
            before = state[slot] if positions[row] > 0 else torch.zeros_like(state[slot])
            kept = before * decays[row, :, None, None]
            added = betas[row, :, None] * (v[row] - torch.einsum("hk,hkv->hv", k[row], kept))
            state[slot] = kept + k[row, :, :, None] * added[:, None, :]
            out[row] = torch.einsum("hk,hkv->hv", q[row], state[slot]).flatten().to(out.dtype)


#: Head by head: see `linear_of_heads`.
head_linear = partial(linear_of_heads, linear)


def latent_cache_shape(
    num_blocks: int, block_size: int, latent: Latent, dtype: torch.dtype = torch.float32
) -> tuple[int, ...]:
    """int8: behind the codes of each 16 rows lie their scales, float32, as in `kv_cache_shapes`."""
    if dtype == torch.int8:
        return num_blocks, block_size // KEY_TILE, KEY_TILE * latent.width + TILE_SCALE_BYTES
    return num_blocks, block_size, latent.width


def latent_write(
    q_latent: Tensor,
    q: Tensor,
    kv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    norm: Tensor,
    eps: float,
    cache: Tensor,
    slot_mapping: Tensor,
    latent: Latent,
) -> None:
    """The cache's rows of T tokens, and the rotated part of their queries.

    q_latent [T, heads * (rank + rope)], of which the last `rope` of each head are written;
    q [T, heads * (nope + rope)], of which the last `rope` are read; kv [T, rank + rope];
    cos_sin float32 [max_pos, rope] = cos | sin; norm float32 [rank];
    slot_mapping int64 [T] = block * block_size + offset.
    """
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    q_heads, out_heads = (each.view(len(each), latent.num_heads, -1) for each in (q, q_latent))
    out_heads[..., latent.rank :] = _rotated(q_heads[..., latent.nope_dim :], cos, sin)
    key = _rotated(kv[:, None, latent.rank :], cos, sin)[:, 0]
    rows = torch.cat((_normed(kv[:, : latent.rank], norm, eps), key), dim=-1)
    if cache.dtype == torch.int8:
        block_size = cache.shape[1] * KEY_TILE
        offsets = slot_mapping % block_size
        at = slot_mapping // block_size, offsets // KEY_TILE, offsets % KEY_TILE
        codes, scales = _tile_parts(cache)
        _split_last(codes, KEY_TILE, -1)[at], scales[at] = _int8(rows)
        return
    cache[slot_mapping // cache.shape[1], slot_mapping % cache.shape[1]] = _cached(rows, cache.dtype)


def latent_attention(
    out: Tensor,
    q_latent: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    latent: Latent,
    scale: float,
    *,
    plan: None = None,
) -> None:
    """Causal attention whose keys are the cache's rows, the same for all heads, and whose values are their latents.

    out float32 [T, heads * rank]; q_latent [T, heads * (rank + rope)]; cache [num_blocks, block_size, rank + rope];
    the rest as of `attention`.
    """
    q_heads, out_heads = (each.view(len(each), latent.num_heads, -1) for each in (q_latent, out))
    starts = query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens.tolist()):
        rows = slice(starts[i], starts[i + 1])
        keys = _gather_rows(cache, block_tables[i], seq_len)
        scores = torch.einsum("thd,sd->hts", q_heads[rows], keys) * scale
        unseen = torch.arange(seq_len)[None, :] > torch.arange(seq_len - (rows.stop - rows.start), seq_len)[:, None]
        probs = scores.masked_fill(unseen, -math.inf).softmax(dim=-1)
        out_heads[rows] = torch.einsum("hts,sd->thd", probs, keys[:, : latent.rank])


def _gather_rows(cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """float32 [seq_len, width]: the latents of one sequence."""
    if cache.dtype == torch.int8:
        codes, scales = _tile_parts(cache[block_table[: -(-seq_len // (cache.shape[1] * KEY_TILE))].long()])
        return (_split_last(codes, KEY_TILE, -1) * scales[..., None]).flatten(0, 2)[:seq_len]
    blocks = block_table[: -(-seq_len // cache.shape[1])].long()
    return cache[blocks].flatten(0, 1)[:seq_len].float()


#: Its meaning is the calls of the other operations.
program_runner = Runner
#: Host arrays for `attention` beside the step's: none.
attention_planner = NoPlanner
