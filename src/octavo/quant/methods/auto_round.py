"""auto-round: weights of other methods' forms, which `packing_format` names; bits and groups may differ by layer
(`extra_config`), which the tensors say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from octavo.quant.methods.awq import AWQ
from octavo.quant.methods.compressed_tensors import CompressedTensors
from octavo.quant.methods.float8 import Float8
from octavo.quant.methods.gptq import GPTQ
from octavo.quant.methods.parts import Method, Parts, Settings
from octavo.quant.packed import QuantizedWeight

_DEFAULT: Final = "auto_round:auto_gptq"


def _gptq(settings: Settings) -> Method:
    return GPTQ(settings)


def _gptq_v2(settings: Settings) -> Method:
    return GPTQ(Settings({**settings.values, "checkpoint_format": "gptq_v2"}))


def _floats_of_blocks(settings: Settings) -> Method:
    """Its own keys say nothing that the tensors do not."""
    return CompressedTensors(Settings({}))


#: The method, and the data types that its weights may have.
_FORMATS: Final[dict[str, tuple[Callable[[Settings], Method], tuple[str, ...]]]] = {
    "auto": (_gptq, ("int",)),
    _DEFAULT: (_gptq, ("int",)),
    "auto_round:gptq": (_gptq, ("int",)),
    "auto_round": (_gptq_v2, ("int",)),
    "auto_round:gptqmodel": (_gptq_v2, ("int",)),
    "auto_round:auto_awq": (AWQ, ("int",)),
    "auto_round:awq": (AWQ, ("int",)),
    "auto_round:fp8_static": (lambda settings: Float8(Settings({})), ("fp", "fp8")),
    "auto_round:llm_compressor": (_floats_of_blocks, ("mx_fp", "mx_fp_rceil", "nv_fp", "nv_fp4_with_static_gs", "fp")),
}


class AutoRound:
    name: Final = "auto-round"

    def __init__(self, settings: Settings) -> None:
        for key in ("rotation_config", "spinquant_config"):
            if settings.values.get(key):
                raise settings.fail(key, "is not supported: activations would have to be rotated")
        settings.refuse_unless("packing_format", tuple(_FORMATS))
        make, types = _FORMATS[settings.values.get("packing_format") or _DEFAULT]
        settings.refuse_unless("data_type", types, "is not what its packing_format holds")
        self._inner = make(settings)
        self.parts: Final = self._inner.parts

    def holds(self, parts: Parts) -> bool:
        return self._inner.holds(parts)

    def shape(self, parts: Parts) -> tuple[int, int]:
        return self._inner.shape(parts)

    def bits(self, parts: Parts) -> int:
        return self._inner.bits(parts)

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        return self._inner.weight(parts)
