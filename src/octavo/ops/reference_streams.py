"""What the operations of `stream_operations` mean, in plain torch float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.reference import activated

#: Of `match_rms_`: what has next to no size is not blown up.
LEAST_SQUARE = 1e-5


def multiply_(x: Tensor, factors: Tensor) -> None:
    """x [T, N] *= factors, float32 [N] or [1]."""
    x.mul_(factors)


def match_rms_(x: Tensor, to: Tensor) -> None:
    """x [T, N] *= rms(to) / rms(x) row by row, where the mean square of x counts as 1e-5 at least."""
    target = to.square().mean(-1, keepdim=True).sqrt()
    size = x.square().mean(-1, keepdim=True).clamp(min=LEAST_SQUARE).sqrt()
    x.copy_(x * target / size)


def cut_gates_(x: Tensor, width: int, deviations: float) -> None:
    """x[:, :width] = relu(gates - (mean + deviations * std)), of each row by itself."""
    gates = x[:, :width]
    cut = gates.mean(-1, keepdim=True) + deviations * gates.std(-1, keepdim=True, unbiased=False)
    gates.copy_((gates - cut).relu())


def act_times(out: Tensor, x: Tensor, y: Tensor, first: int, kind: str) -> None:
    """out [T, N] = act(x) * y[:, first : first + N]."""
    torch.mul(activated(x, kind), y[:, first : first + out.shape[1]], out=out)


def altup_predict_(streams: Sequence[Tensor], scores: Tensor, coefs: Tensor) -> None:
    """n streams [T, H], in place: stream j += sum over i of c[j, i] * stream i, with c = coefs @ tanh(scores).

    scores float32 [T, n]; coefs float32 [n * n, n].
    """
    before = torch.stack(list(streams), dim=1)  # [T, n, H]
    mixed = (torch.tanh(scores) @ coefs.t()).view(len(scores), len(streams), len(streams))
    for stream, predicted in zip(streams, (mixed @ before + before).unbind(1), strict=True):
        stream.copy_(predicted)


def altup_correct_(
    out: Tensor,
    streams: Sequence[Tensor],
    activated: Tensor,
    scores: Tensor,
    coefs: Tensor,
    active: int,
    scale: Tensor | None = None,
) -> None:
    """Stream j += (1 + c[j]) * (activated - stream `active`), with c = coefs @ tanh(scores); out = that stream, by
    `scale`, float32 [H].

    out, activated [T, H]; scores float32 [T, n]; coefs float32 [n, n].
    """
    news = activated - streams[active]
    mixed = torch.tanh(scores) @ coefs.t() + 1
    for number, stream in enumerate(streams):
        stream.add_(news * mixed[:, number : number + 1])
    out.copy_(streams[active] if scale is None else streams[active] * scale)
