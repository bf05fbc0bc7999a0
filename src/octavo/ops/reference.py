"""What each operation of a step means, in plain torch float32. Slow, obvious, and the judge of all other versions.

Shapes: T tokens in the step, H hidden. All outputs are allocated by the caller. What reads and writes caches of keys
stands in `reference_attention`, what keeps states in `reference_states`, what has several streams in
`reference_streams`, sampling in `reference_sampling`.
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
from octavo.ops.lora import ReferenceBank, reference_delta
from octavo.ops.operations import GateKind
from octavo.ops.routing import Routing
from octavo.ops.run import Runner
from octavo.quant.packed import QuantizedWeight, as_floats

#: Of activations whose gates and factors are bounded: by what.
BOUNDED_GATES = {"swiglu_oai": 7.0, "gegelu": 20.0}


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


def fixed_point(weight: Tensor) -> Tensor:
    """A matrix for the packers whose products may be rounded where they are then faster. Here they are not."""
    return weight


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


def rms_normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


lora_bank = ReferenceBank


def lora_delta(out: Tensor, x: Tensor, slots: Tensor, bank: ReferenceBank) -> None:
    """out [T, N], a product of x [T, K], changed in place for the rows whose slot, int32 [T], has something in the
    bank: out = (out + scaling * (x a^T) b) * scale + shift, `lora.LoraWeights`. Slots below 0 mean none."""
    reference_delta(out, x, slots, bank)


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """out [T, H] = x / sqrt(mean(x^2) + eps) * weight. out may be x."""
    out.copy_(rms_normed(x, weight, eps))


def add_rms_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """residual += x; out = rms_norm(residual)."""
    residual.add_(x)
    out.copy_(rms_normed(residual, weight, eps))


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
    normed = rms_normed(parts, weight.view(-1, width), eps) if kind == "rms" else F.layer_norm(parts, (width,), eps=eps)
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
    gegelu: the same with 20 in place of 7.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if kind in BOUNDED_GATES:
        limit = BOUNDED_GATES[kind]
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
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


pack_heads = pack_experts


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
experts = partial(grouped_experts, linear, act_mul, act, lora_delta)


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


def clip_(x: Tensor, limit: float) -> None:
    """x = x, held between -limit and limit."""
    x.clamp_(-limit, limit)


def gate_(x: Tensor, gates: Tensor, kind: GateKind) -> None:
    """x *= sigmoid(gates), or silu(gates); both [T, W]."""
    opened = torch.sigmoid(gates.float()) if kind == "sigmoid" else F.silu(gates.float())
    x.copy_(x.float() * opened)


#: Head by head: see `linear_of_heads`.
head_linear = partial(linear_of_heads, linear)


#: Its meaning is the calls of the other operations.
program_runner = Runner
