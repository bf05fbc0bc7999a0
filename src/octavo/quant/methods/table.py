"""Which method reads which `quant_method`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.quant.methods.awq import AWQ
from octavo.quant.methods.bitsandbytes import BitsAndBytes
from octavo.quant.methods.compressed_tensors import CompressedTensors
from octavo.quant.methods.float8 import Float8
from octavo.quant.methods.gptq import GPTQ
from octavo.quant.methods.parts import Method, Settings

METHODS: Final[dict[str, Callable[[Settings], Method]]] = {
    "gptq": GPTQ,
    "awq": AWQ,
    "compressed-tensors": CompressedTensors,
    "fp8": Float8,
    "fbgemm_fp8": lambda settings: Float8(settings, "fbgemm_fp8"),
    "bitsandbytes": BitsAndBytes,
}
#: What the methods are also called, in files and on the command line: the same weights for other kernels.
ALIASES: Final = {
    "gptq_marlin": "gptq", "gptq_bitblas": "gptq", "awq_marlin": "awq", "compressed_tensors": "compressed-tensors",
}  # fmt: skip


def method_name(name: str) -> str:
    """As `METHODS` has it."""
    return ALIASES.get(name, name)


def find_method(config: dict[str, Any]) -> Method:
    """The method of a `quantization_config`. Raises CheckpointError for one that is not known, or its options."""
    name = config.get("quant_method")
    if name is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        name = "bitsandbytes"
    found = METHODS.get(method_name(name)) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"quantization_config: quant_method = {str(name)[:80]!r} is not supported; these are: {', '.join(METHODS)}"
        )
    return found(Settings(config))
