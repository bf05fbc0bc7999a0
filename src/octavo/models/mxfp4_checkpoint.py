"""A directory of safetensors files whose experts are in MXFP4, as those of GPT-OSS are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import SafetensorsCheckpoint
from octavo.quant import mxfp4
from octavo.quant.packed import QuantizedWeight

_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"


def is_mxfp4(config: dict[str, Any]) -> bool:
    section = config.get("quantization_config")
    return isinstance(section, dict) and section.get("quant_method") == "mxfp4"


class Mxfp4Checkpoint(SafetensorsCheckpoint):
    """`X_blocks` [E, N, K / 32, 16] and `X_scales` [E, N, K / 32] are one tensor `X_blocks` [E, N, K]."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.quantization = f"MXFP4 x{sum(name.endswith(_BLOCKS) for name in self._tensors)}"

    def names(self) -> list[str]:
        return [name for name in super().names() if not self._is_scales(name)]

    def _is_scales(self, name: str) -> bool:
        return name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        shape = super().shape(name)
        if not name.endswith(_BLOCKS):
            return shape
        scales = name.removesuffix(_BLOCKS) + _SCALES
        if scales not in self._tensors or (*super().shape(scales), mxfp4.GROUP // 2) != shape:
            raise CheckpointError(f"{self.source}: tensor {name!r} and its scales {scales!r} do not fit together")
        return (*shape[:-2], shape[-2] * mxfp4.GROUP)

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        if not name.endswith(_BLOCKS):
            return super().nbytes(name, float_bytes)
        scales = name.removesuffix(_BLOCKS) + _SCALES
        return super().nbytes(name) + super().nbytes(scales)

    def get(self, name: str) -> Tensor | QuantizedWeight:  # type: ignore[override]
        if not name.endswith(_BLOCKS):
            return super().get(name)
        scales = name.removesuffix(_BLOCKS) + _SCALES
        return mxfp4.transcode(self._tensors[name].get(name), self._tensors[scales].get(scales))
