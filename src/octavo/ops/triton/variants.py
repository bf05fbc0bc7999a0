"""What of a kernel can be compiled without a GPU: one specialisation, as a launch would make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

#: Triton's names of the element types that pointers have.
TYPE_NAMES: Final = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One specialisation of a kernel.

    `signature`: type of each parameter that is no constexpr, such as "*bf16", "i32", "fp32". `divisible`: names of
    the parameters that a launch would find divisible by 16, pointers among them. `max_spill_bytes`: spilled to local
    memory by one thread, at most.
    """

    name: str
    kernel: Any  # triton.JITFunction
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    enable_fp_fusion: bool = True
    divisible: frozenset[str] = field(default_factory=frozenset)
    min_capability: int = 80  # 90: uses what only Hopper has
    max_spill_bytes: int = 0
