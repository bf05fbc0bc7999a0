"""Products of many matrices by way of a table's own: of experts, rows grouped by expert, and of heads, one a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from octavo.ops.lora import ExpertDeltas


def grouped_experts(
    linear: Callable[..., None],
    act_mul: Callable[..., None],
    act_of: Callable[..., None],
    lora_delta: Callable[..., None],
    out: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up_weights: Sequence[Any],
    down_weights: Sequence[Any],
    kind: str,
    *,
    places: Tensor,
    grouped: Tensor,
    gate_up: Tensor,
    act: Tensor,
    gated: bool = True,
    scales_input: bool = False,
    deltas: ExpertDeltas | None = None,
) -> None:
    """out [T, H] = sum over j of weights[:, j] * down(act(gate(x)) * up(x)) of expert ids[:, j], in the order of j.

    Not `gated`: of weights[:, j] * down(act(up(x))). `scales_input`: the weight multiplies x, not what comes out.
    ids int32 [T, k], weights float32 [T, k]; gate_up_weights and down_weights: one an expert, [2 I, H] (or [I, H]) and
    [H, I].
    `deltas`: what adapters add to both products.
    Scratch: places int32 [T, k], grouped [T, k H], gate_up [T, 2 k I] (or [T, k I]), act [T, k I].
    """
    num_rows, top_k = ids.shape
    count = num_rows * top_k
    if count == 0:
        return
    chosen = ids.flatten().long()
    order = chosen.argsort(stable=True)
    places.view(-1)[order] = torch.arange(count, dtype=torch.int32)
    starts = [0, *chosen.bincount(minlength=len(gate_up_weights)).cumsum(0).tolist()]
    inputs, between, inner = (scratch.view(count, -1) for scratch in (grouped, gate_up, act))
    inputs.copy_(x[order // top_k])
    if scales_input:
        inputs.mul_(weights.flatten()[order].unsqueeze(1))
    for weight, (first, end) in zip(gate_up_weights, pairwise(starts), strict=True):
        if first < end:
            linear(between[first:end], inputs[first:end], weight)
    if deltas is not None:
        slots, of_rows = deltas.slots[order // top_k], chosen[order]
        lora_delta(between, inputs, deltas.gate_up.slots_of(slots, of_rows), deltas.gate_up.bank)
    (act_mul if gated else act_of)(inner, between, kind)
    for weight, (first, end) in zip(down_weights, pairwise(starts), strict=True):
        if first < end:
            linear(inputs[first:end], inner[first:end], weight)
    if deltas is not None:
        lora_delta(inputs, inner, deltas.down.slots_of(slots, of_rows), deltas.down.bank)
    results = inputs[places.long()]
    terms = results if scales_input else results * weights.unsqueeze(-1)
    out.copy_(terms[:, 0])
    for j in range(1, top_k):
        out.add_(terms[:, j])


def linear_of_heads(linear: Callable[..., None], out: Tensor, x: Tensor, weights: Sequence[Any]) -> None:
    """out [T, heads, .][..., :N] = x [T, heads, .][..., :K] @ weights[head].T; both flat, as [T, heads * .]."""
    out_heads, x_heads = (each.view(len(each), len(weights), each.shape[1] // len(weights)) for each in (out, x))
    for head, weight in enumerate(weights):
        linear(out_heads[:, head, : weight.N], x_heads[:, head, : weight.K], weight)
