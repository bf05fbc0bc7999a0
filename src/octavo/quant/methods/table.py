"""Which method reads which `quant_method`, and what docs/quantization.md says of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo.base.config.engine import LoadQuantization
from octavo.base.errors import CheckpointError
from octavo.quant.methods.auto_round import AutoRound
from octavo.quant.methods.awq import AWQ
from octavo.quant.methods.bitsandbytes import BitsAndBytes
from octavo.quant.methods.codebooks import AQLM, SqueezeLLM
from octavo.quant.methods.compressed_tensors import CompressedTensors
from octavo.quant.methods.float8 import Float8
from octavo.quant.methods.gptq import GPTQ
from octavo.quant.methods.hqq import HQQ
from octavo.quant.methods.marlin import QQQ, Marlin
from octavo.quant.methods.modelopt import ModelOpt
from octavo.quant.methods.parts import Method, Parts, Settings
from octavo.quant.methods.quanto import Quanto
from octavo.quant.methods.sparse_marlin import gptq_marlin_24
from octavo.quant.methods.torchao import TorchAO
from octavo.quant.packed import QuantizedWeight


class Floats:
    """A method whose files hold floats, which are quantized while they load. No module holds a quantized matrix, so
    that nobody asks for one."""

    parts: Final = ()

    def __init__(self, name: LoadQuantization) -> None:
        self.name: Final = name

    def holds(self, parts: Parts) -> bool:
        return False

    def shape(self, parts: Parts) -> tuple[int, int]:
        raise AssertionError("the files hold floats")

    def bits(self, parts: Parts) -> int:
        raise AssertionError("the files hold floats")

    def weight(self, parts: Parts) -> QuantizedWeight:
        raise AssertionError("the files hold floats")


@dataclass(frozen=True)
class Entry:
    """`stored`, `held` and `exact` are cells of the table in the documentation."""

    make: Callable[[Settings], Method]
    stored: str
    held: str
    exact: str = "yes"


METHODS: Final[dict[str, Entry]] = {
    "gptq": Entry(
        GPTQ,
        "2, 3, 4, 8 bits, groups of any size; act-order (desc_act); formats gptq and gptq_v2; quantize_config.json",
        "integers of 4 or 8 bits; columns of act-order in the order of their groups",
    ),
    "awq": Entry(AWQ, "4 bits, version gemm; quant_config.json", "integers of 4 bits"),
    "compressed-tensors": Entry(
        CompressedTensors,
        "pack-quantized (W4A16, W8A16; 2 to 8 bits, actorder), int-quantized (W8A8), float-quantized (FP8 of a matrix, "
        "rows, groups or blocks), nvfp4-pack-quantized, mxfp4-pack-quantized, mxfp8-quantized, marlin-24",
        "integers of 4, 5, 6 or 8 bits; float8; a table of 16 values with a scale in each 16",
        "yes; scales of activations are not used: octavo rounds them less",
    ),
    "fp8": Entry(
        Float8,
        "float8 with a scale a matrix, a row, or a block (128 x 128: DeepSeek, Qwen); dynamic and static",
        "float8",
        "yes; scales of activations are not used: octavo rounds them less",
    ),
    "fbgemm_fp8": Entry(
        lambda settings: Float8(settings, "fbgemm_fp8"), "float8 with a scale a row", "float8",
        "yes; activations are not cut off at activation_scale_ub",
    ),
    "bitsandbytes": Entry(
        BitsAndBytes,
        "nf4, fp4, nested (double) quantization; LLM.int8",
        "a table of 16 values with a scale a block; integers of 8 bits",
        "4 bits: yes; 8 bits: to the last digit of a float32; outliers need no float16 beside them",
    ),
    "hqq": Entry(
        HQQ,
        "1, 2, 3, 4, 8 bits, axis 1 or 0",
        "integers of 4 or 8 bits with minima; axis 0: float32",
        "nearer: products in float32, which its library rounds to the model's type",
    ),
    "aqlm": Entry(AQLM, "codes of codebooks", "float32, as large as a model that is not quantized",
                  "nearer: sums in float32"),
    "squeezellm": Entry(SqueezeLLM, "4 bits, a table for each row (no sparse part)",
                        "the floats of the tables, as large as a model that is not quantized"),
    "marlin": Entry(Marlin, "4 bits, GPTQ in the order of a GPU's kernel", "integers of 4 bits"),
    "qqq": Entry(QQQ, "4 bits, groups of 128 or rows", "integers of 4 bits",
                 "scales of two levels are one product in float32"),
    "gptq_marlin_24": Entry(gptq_marlin_24, "4 or 8 bits, two of four values kept, in the order of a GPU's kernel",
                            "integers of 4 or 8 bits, with those that were not kept"),
    "auto-round": Entry(
        AutoRound,
        "packing_format auto_gptq, gptqmodel, auto_awq, fp8_static, llm_compressor (MXFP4, MXFP8, NVFP4); extra_config",
        "as gptq, awq, fp8 and compressed-tensors",
    ),
    "modelopt": Entry(
        ModelOpt,
        "FP8 of a matrix, rows or blocks, MXFP8, NVFP4, MXFP4, W4A16_AWQ, W4A8_AWQ, W8A16, mixtures; "
        "hf_quant_config.json",
        "float8; a table of 16 values with a scale in each 16; integers of 4, 5, 8 bits; with pre_quant_scale float32",
        "yes; scales of activations are not used: octavo rounds them less",
    ),
    "quanto": Entry(
        Quanto, "qint2, qint4, qint8, qfloat8; quanto_qmap.json", "integers of 4 or 8 bits; float8",
        "yes, in float32, where its library rounds to the model's type",
    ),
    "torchao": Entry(
        TorchAO,
        "int4, int8 and intx, with activations or without, float8, NVFP4, MXFP4, MXFP8; in safetensors",
        "integers of 4 to 8 bits; float8; a table of 16 values with a scale in each 16",
        "yes; int4 with zeros: to the last digit of a float32",
    ),
    "experts_int8": Entry(lambda settings: Floats("experts_int8"), "floats", "experts as integers of 8 bits",
                          "rounded while it loads"),
    "deepspeedfp": Entry(lambda settings: Floats("deepspeedfp"), "floats", "float8, a scale a row",
                         "rounded while it loads, to 8 bits where 6 are asked for"),
}  # fmt: skip
#: What the methods are also called, in files and on the command line: the same weights for other kernels.
ALIASES: Final = {
    "gptq_marlin": "gptq", "gptq_bitblas": "gptq", "awq_marlin": "awq", "compressed_tensors": "compressed-tensors",
    "auto_round": "auto-round", "intel/auto-round": "auto-round", "inc": "auto-round", "modelopt_fp4": "modelopt",
    "modelopt_mxfp8": "modelopt", "modelopt_mixed": "modelopt",
}  # fmt: skip


def method_name(name: str) -> str:
    """As `METHODS` has it."""
    return ALIASES.get(name, name)


def find_method(config: dict[str, Any], metadata: Mapping[str, str] | None = None) -> Method:
    """The method of a `quantization_config`. `metadata`: what files of safetensors say beside their tensors.

    Raises CheckpointError for a method that is not known, or its options.
    """
    name = config.get("quant_method")
    if name is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        name = "bitsandbytes"
    if name == "gptq" and (config.get("is_marlin_format") or config.get("checkpoint_format") == "marlin"):
        name = "marlin"
    if name in ("gptq", "gptq_marlin") and config.get("checkpoint_format") == "marlin_24":
        name = "gptq_marlin_24"
    found = METHODS.get(method_name(name)) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"quantization_config: quant_method = {str(name)[:80]!r} is not supported; these are: {', '.join(METHODS)}"
        )
    return found.make(Settings(config, metadata))
