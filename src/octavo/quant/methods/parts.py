"""The tensors of which a method makes one matrix, what a method is, and the settings that it reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.quant.packed import BITS, QuantizedWeight, exact_scales

FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
WORDS: Final = (torch.int32,)
BYTES: Final = (torch.uint8,)


class Parts:
    """The tensors of one module, by what stands behind its name: views of the file, not to be written to.

    One without values is not there: tools leave such in the place of what a method does not need.
    """

    #: The shape that the model gives the matrix, where it is known.
    expected: tuple[int, int] | None = None

    def __init__(self, module: str, tensors: Mapping[str, Tensor]) -> None:
        self.module = module
        self._tensors = {part: tensor for part, tensor in tensors.items() if tensor.numel()}

    def __contains__(self, part: str) -> bool:
        return part in self._tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, part: str) -> torch.dtype | None:
        """None if there is no such tensor."""
        return self._tensors[part].dtype if part in self._tensors else None

    def get(self, part: str, dtypes: Collection[torch.dtype]) -> Tensor:
        """Raises CheckpointError, naming the tensor, if it is missing or of another type."""
        if part not in self._tensors:
            raise CheckpointError(f"tensor {self._name(part)!r} is missing")
        tensor = self._tensors[part]
        if tensor.dtype not in dtypes:
            raise self.fail(part, f"has the type {str(tensor.dtype).removeprefix('torch.')}")
        return tensor

    def matrix(self, part: str, dtypes: Collection[torch.dtype]) -> Tensor:
        """The same with two dimensions."""
        tensor = self.get(part, dtypes)
        if tensor.dim() != 2:
            raise self.fail(part, f"has the shape {list(tensor.shape)}, not that of a matrix")
        return tensor

    def shaped(self, part: str, dtypes: Collection[torch.dtype], *shape: int) -> Tensor:
        """The same with the shape."""
        tensor = self.get(part, dtypes)
        if tuple(tensor.shape) != shape:
            raise self.fail(part, f"has the shape {list(tensor.shape)}, not {list(shape)}")
        return tensor

    def fail(self, part: str, why: str) -> CheckpointError:
        return CheckpointError(f"tensor {self._name(part)!r} {why}")

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"


class Method(Protocol):
    """How checkpoints of one method of quantization hold a matrix. All methods raise `CheckpointError`."""

    @property
    def name(self) -> str:
        """As `quant_method` of the configuration has it."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What may stand behind a module's name in the names of its tensors."""

    def holds(self, parts: Parts) -> bool:
        """Whether the parts are a quantized matrix; if not, they are what their names say."""

    def shape(self, parts: Parts) -> tuple[int, int]:
        """[N, K] of the matrix."""

    def bits(self, parts: Parts) -> int:
        """That a value takes at least when it is loaded."""

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        """The matrix [N, K]; a float tensor if its values have no packed form."""


class Settings:
    """The configuration of a method. Nothing in it is trusted: a wrong value is a `CheckpointError`.

    `metadata`: what files of safetensors say beside their tensors.
    """

    def __init__(self, values: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
        self.values = values
        self.metadata = metadata or {}

    def fail(self, key: str, why: str) -> CheckpointError:
        return CheckpointError(f"quantization_config: {key} = {str(self.values.get(key))[:80]!r} {why}")

    def refuse_unless(self, key: str, allowed: Collection[Any], why: str = "is not supported") -> None:
        """Absent and null always pass."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self.fail(key, why)

    def integer(self, key: str, default: int, low: int = 1, high: int = 1 << 24) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"is not a whole number from {low} to {high}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, "is neither true nor false")
        return default if value is None else value

    def section(self, key: str) -> Settings:
        """The mapping under a key, empty if absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.fail(key, "is not a mapping")
        return Settings(value or {})


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """Values of `bits` each, uint8 [R, W * item bits / bits], of the dense rows `words` [R, W]: lowest bits first."""
    # Flat in between: rows of one word may keep the stride of what they were transposed from.
    data = words.contiguous().view(-1).view(words.shape).view(torch.uint8)
    rows = len(data)
    if 8 % bits == 0:
        # A byte becomes two, of which each has half of its bits, until they have as many as a value.
        for half in (width for width in (4, 2, 1) if width >= bits):
            wide = data.to(torch.int16)
            data = (wide << 8 - half).bitwise_or_(wide).bitwise_and_(0x101 * ((1 << half) - 1)).view(torch.uint8)
        return data
    # Eight values fill as many bytes as they have bits.
    whole = data.shape[1] // bits * bits
    runs = data[:, :whole].reshape(rows, -1, bits).to(torch.int64)
    joined = (runs << torch.arange(0, 8 * bits, 8)).sum(-1, keepdim=True)
    return (joined >> torch.arange(0, 8 * bits, bits) & ((1 << bits) - 1)).to(torch.uint8).view(rows, -1)


def held_bits(bits: int) -> int:
    """The fewest bits of a packed form that hold values of so many."""
    return min(each for each in BITS if each >= bits)


def affine(
    values: Tensor, bits: int, scales: Tensor, zeros: Tensor | int, order: Tensor | None = None
) -> QuantizedWeight:
    """scales [N, G] * (values - zeros), values uint8 [N, K] below 2**bits, zeros uint8 [N, G] or one for all.

    Exact: a product of a float16, a bfloat16 and a zero of 8 bits has no more digits than a float32.
    """
    group = values.shape[1] // scales.shape[1]
    held = held_bits(bits)
    if isinstance(zeros, Tensor) and (zeros == zeros.flatten()[0]).all():
        zeros = int(zeros.flatten()[0])
    if isinstance(zeros, int):
        return QuantizedWeight(values.contiguous(), held, group, exact_scales(scales), zero=zeros, order=order)
    wide = scales.to(torch.float32).contiguous()
    mins = -(wide * zeros.to(torch.float32))
    return QuantizedWeight(values.contiguous(), held, group, wide, mins, order=order)


def column_order(groups: Tensor, num_groups: int) -> tuple[bool, Tensor | None]:
    """Whether columns fall into groups of one size, and the order in which those of a group stand side by side.

    `groups` int [K]: the group of each column. The order is None if they stand so.
    """
    if len(groups) % num_groups:
        return False, None
    expected = torch.arange(len(groups)) // (len(groups) // num_groups)
    groups = groups.to(torch.int64)
    if torch.equal(groups, expected):
        return True, None
    order = groups.argsort(stable=True)
    return torch.equal(groups[order], expected), order


def grouped_scales(parts: Parts, part: str, scales: Tensor, n: int, k: int, block: tuple[int, int] | None) -> Tensor:
    """Scales of a whole matrix, of rows, of groups or of blocks, as [N, G].

    `block`: rows and columns that share one, of which the last may be fewer.
    """
    shape = tuple(scales.shape)
    if math.prod(shape) == 1:
        return scales.reshape(1, 1).expand(n, 1)
    if shape in ((n,), (n, 1)):
        return scales.reshape(n, 1)
    if block is not None and shape == (-(-n // block[0]), -(-k // block[1])):
        group = math.gcd(k, block[1])
        columns = torch.arange(0, k, group) // block[1]
        return scales[torch.arange(n) // block[0]][:, columns]
    if len(shape) == 2 and shape[0] == n and k % shape[1] == 0:
        return scales
    raise parts.fail(part, f"has the shape {list(shape)}, which does not fit a matrix {[n, k]}")
