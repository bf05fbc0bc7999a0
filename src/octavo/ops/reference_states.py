"""What the operations mean that keep a state of each sequence, in plain torch float32.

Shapes: T tokens in the step, B sequences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Under the root where the gated delta rule brings q and k to length 1.
DELTA_EPS = 1e-6


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
