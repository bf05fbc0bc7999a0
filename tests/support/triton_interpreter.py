"""Triton's interpreter, where it differs from a GPU: repaired for the tests, as of Triton 3.6.

- A scalar tensor in `range` fails with NumPy 2.4.
- bfloat16 is cut off instead of rounded, and multiplied as if its bits were integers.
- float8 is rounded to half the value just below a power of two.
- Which sum a row of a product gets depends on its place in the tile, which on a GPU it does not: sums here are in
  float64, where that is hardly ever seen behind float32's rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
}


def repair() -> None:
    """Change the interpreter of this process. Call it once."""
    patch_tensor, convert, dot = (
        interpreter._patch_lang_tensor,
        interpreter._convert_float,
        interpreter.InterpreterBuilder.create_dot,
    )

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def converted(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        before, after = _TYPES.get(source.name), _TYPES.get(target.name)
        if before is None or after is None:
            return convert(data, source, target, rounding)
        bits = np.array(data, order="C").reshape(-1).view(np.uint8)
        result = torch.from_numpy(bits).view(before).to(after).view(_BITS[after.itemsize])
        return result.numpy().view(f"u{after.itemsize}").reshape(data.shape)

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar.name not in ("bf16", "fp8e4nv", "fp8e5"):
            return handle
        data = converted(handle.data, handle.dtype.scalar, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def product(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if not a.dtype.is_floating():
            return dot(self, a, b, d, *rest)
        left, right = (widened(x).data.astype(np.float64) for x in (a, b))
        return interpreter.TensorHandle(np.matmul(left, right).astype(d.data.dtype) + d.data, d.dtype.scalar)

    interpreter._patch_lang_tensor = patched_tensor
    interpreter._convert_float = converted
    interpreter.InterpreterBuilder.create_dot = product
