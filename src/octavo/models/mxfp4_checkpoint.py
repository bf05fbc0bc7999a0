"""Experts in MXFP4, as those of GPT-OSS are."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import StoredCheckpoint
from octavo.quant import mxfp4
from octavo.quant.packed import QuantizedWeight

_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"


class Mxfp4Checkpoint:
    """`X_blocks` [E, N, K / 32, 16] and `X_scales` [E, N, K / 32] are one tensor `X_blocks` [E, N, K]."""

    naming: Final = "hf"

    def __init__(self, inner: StoredCheckpoint) -> None:
        self.source, self.config, self.dtype = inner.source, inner.config, inner.dtype
        self._inner = inner
        self._names = set(inner.names())
        self.quantization = f"MXFP4 x{sum(name.endswith(_BLOCKS) for name in self._names)}"

    def names(self) -> list[str]:
        return [name for name in self._inner.names() if not self._is_scales(name)]

    def _is_scales(self, name: str) -> bool:
        return name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._inner.shape(name)
        if not name.endswith(_BLOCKS):
            return shape
        scales = _scales_of(name)
        if scales not in self._names or (*self._inner.shape(scales), mxfp4.GROUP // 2) != shape:
            raise CheckpointError(f"{self.source}: tensor {name!r} and its scales {scales!r} do not fit together")
        return (*shape[:-2], shape[-2] * mxfp4.GROUP)

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        if not name.endswith(_BLOCKS):
            return self._inner.nbytes(name, float_bytes)
        return self._inner.nbytes(name) + self._inner.nbytes(_scales_of(name))

    def get(self, name: str) -> Tensor | QuantizedWeight:
        if not name.endswith(_BLOCKS):
            return self._inner.get(name)
        return mxfp4.transcode(self._inner.raw(name), self._inner.raw(_scales_of(name)))


def _scales_of(blocks: str) -> str:
    return blocks.removesuffix(_BLOCKS) + _SCALES
