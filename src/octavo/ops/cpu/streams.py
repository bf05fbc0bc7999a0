"""The native operations of `reference_streams`; as in `kernels`, the asserts guard the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.kernels import ACTIVATIONS
from octavo.ops.stream_operations import MAX_STREAMS

_F32: Final = torch.float32


def multiply_(x: Tensor, factors: Tensor) -> None:
    rows, width = x.shape
    _check(x, factors)
    assert factors.numel() in (1, width)
    _cpu.multiply(x.data_ptr(), factors.data_ptr(), factors.numel() != width, rows, width)


def match_rms_(x: Tensor, to: Tensor) -> None:
    _check(x, to)
    rows, width = x.shape
    assert to.shape == x.shape
    _cpu.match_rms(x.data_ptr(), to.data_ptr(), rows, width)


def cut_gates_(x: Tensor, width: int, deviations: float) -> None:
    _check(x)
    assert width <= x.shape[1]
    rows, row_width = x.shape
    _cpu.cut_gates(x.data_ptr(), rows, row_width, width, deviations)


def act_times(out: Tensor, x: Tensor, y: Tensor, first: int, kind: str) -> None:
    rows, width = out.shape
    _check(out, x, y)
    assert x.shape == out.shape and len(y) == rows and first + width <= y.shape[1]
    address = y.data_ptr() + first * y.itemsize
    _cpu.act_times(out.data_ptr(), x.data_ptr(), address, y.shape[1], rows, width, ACTIVATIONS[kind])


def altup_predict_(streams: Sequence[Tensor], scores: Tensor, coefs: Tensor) -> None:
    rows, width = _check_altup(streams, scores)
    _check(coefs)
    assert coefs.shape == (len(streams) ** 2, len(streams))
    _cpu.altup_predict([each.data_ptr() for each in streams], scores.data_ptr(), coefs.data_ptr(), rows, width)


def altup_correct_(
    out: Tensor,
    streams: Sequence[Tensor],
    activated: Tensor,
    scores: Tensor,
    coefs: Tensor,
    active: int,
    scale: Tensor | None = None,
) -> None:
    rows, width = _check_altup(streams, scores)
    _check(out, activated, coefs, *([] if scale is None else [scale]))
    assert out.shape == activated.shape == (rows, width) and coefs.shape == (len(streams), len(streams))
    assert 0 <= active < len(streams) and (scale is None or scale.numel() == width)
    addresses = [each.data_ptr() for each in streams]
    factors = 0 if scale is None else scale.data_ptr()
    _cpu.altup_correct(
        addresses,
        scores.data_ptr(),
        coefs.data_ptr(),
        rows,
        width,
        out.data_ptr(),
        activated.data_ptr(),
        active,
        factors,
    )


def _check_altup(streams: Sequence[Tensor], scores: Tensor) -> tuple[int, int]:
    """Rows and width of the streams."""
    _check(scores, *streams)
    rows, width = streams[0].shape
    assert len(streams) <= MAX_STREAMS and scores.shape == (rows, len(streams))
    assert all(each.shape == (rows, width) for each in streams)
    return rows, width


def _check(*tensors: Tensor) -> None:
    assert all(each.dtype == _F32 and each.is_contiguous() for each in tensors)
