"""The native operations of `reference_states`; as in `kernels`, the asserts guard the memory."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.kernels import bias_of

_F32: Final = torch.float32
_I32: Final = torch.int32
#: As in csrc/cpu/kernels/causal_conv.h.
MAX_TAPS: Final = 8
#: As in csrc/cpu/kernels/selective_scan.h.
MAX_STATE_SIZE: Final = 256


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
    rows, width = out.shape
    taps = len(weight)
    assert x.shape == (rows, 3 * width if gated else width) and weight.shape == (taps, width) and taps <= MAX_TAPS
    assert state.shape[1:] == (taps - 1, width) and positions.numel() == rows
    assert out.dtype == x.dtype == weight.dtype == state.dtype == _F32
    assert slots.dtype == positions.dtype == query_start_loc.dtype == _I32
    assert query_start_loc.numel() == slots.numel() + 1
    assert all(tensor.is_contiguous() for tensor in (out, x, weight, state, slots, positions, query_start_loc))
    _cpu.causal_conv(
        out.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        bias_of(bias, width),
        state.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
        query_start_loc.data_ptr(),
        slots.numel(),
        width,
        taps,
        gated,
    )


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
    rows, (num_heads, key_dim, value_dim) = len(out), state.shape[1:]
    assert out.shape == (rows, num_heads * value_dim) and gates.shape == (rows, 2 * num_heads)
    assert qkv.shape == (rows, 2 * num_key_heads * key_dim + num_heads * value_dim) and a_log.shape == (num_heads,)
    assert num_heads % num_key_heads == 0
    assert positions.numel() == rows and query_start_loc.numel() == slots.numel() + 1
    assert slots.dtype == positions.dtype == query_start_loc.dtype == _I32
    floats = (out, qkv, gates, a_log, state)
    assert all(tensor.dtype == _F32 for tensor in floats)
    assert all(tensor.is_contiguous() for tensor in (*floats, slots, positions, query_start_loc))
    _cpu.gated_delta(
        out.data_ptr(),
        qkv.data_ptr(),
        gates.data_ptr(),
        a_log.data_ptr(),
        state.data_ptr(),
        slots.data_ptr(),
        positions.data_ptr(),
        query_start_loc.data_ptr(),
        slots.numel(),
        num_heads,
        num_key_heads,
        key_dim,
        value_dim,
        tiled,
        beta_scale,
    )


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
    rows, width = out.shape
    size, heads = state.shape[1], 0 if a_log.dim() == 2 else len(a_log)
    groups = b.shape[1] // size
    assert x.shape == gate.shape == out.shape and b.shape == c.shape == (rows, groups * size) and size <= MAX_STATE_SIZE
    assert state.shape[2] == width and d.shape == a_log.shape[-1:] and dt.shape == (rows, len(d))
    assert width % heads == heads % groups == 0 if heads else a_log.shape == (size, width) and groups == 1
    assert positions.numel() == rows and query_start_loc.numel() == slots.numel() + 1
    assert slots.dtype == positions.dtype == query_start_loc.dtype == _I32
    floats = (out, x, dt, gate, b, c, a_log, d, state)
    assert all(tensor.dtype == _F32 for tensor in floats)
    assert all(tensor.is_contiguous() for tensor in (*floats, slots, positions, query_start_loc))
    _cpu.selective_scan(
        *(tensor.data_ptr() for tensor in (*floats, slots, positions, query_start_loc)),
        slots.numel(),
        width,
        size,
        heads,
        groups,
    )
