"""The declaration of a parameter: which tensors of a checkpoint it is made of, and how they are packed.

All that needs to know a model's tensors follows from these: what a checkpoint must hold, in which shapes and under
which names, random weights, and what the loader packs under the name that the operations use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from octavo.ops.operands import Weight

#: matrix: [out, in] of a product, or rows of a table. norm: the weight of a norm. bias: added to a product.
Role = Literal["matrix", "norm", "bias"]
#: Which of the table's operations packs it. tied: the output matrix does, and the embedding shares its memory.
#: router: as the output matrix, from float32: which experts it names must not depend on rounded weights. experts: one
#: packed matrix for each expert, of as many parts as there are. heads: the same, of each head. vector: none, it stays a
#: float32 tensor.
Packing = Literal["linear", "embedding", "output", "tied", "router", "experts", "heads", "vector"]


@dataclass(frozen=True, kw_only=True)
class TensorDecl:
    """One tensor of a checkpoint."""

    name: str  # Hugging Face's, as it is after the family's renames
    gguf: str
    shape: tuple[int, ...]
    role: Role
    head_dim: int = 0  # rows come in heads of so many; 0: they do not
    rotary_dim: int = 0  # so many rows of each head are rotated; 0: none
    rotary_at: int = 0  # the first of them
    scale: float = 1.0  # what is stored is multiplied by it


@dataclass(frozen=True, kw_only=True)
class Param:
    """What an operation knows as one weight: tensors one below the other, each with its bias if it has one. Vectors and
    filters stand behind each other."""

    weight: Weight
    parts: tuple[TensorDecl, ...]
    packing: Packing
    biases: tuple[TensorDecl | None, ...] = ()
    offset: float = 0.0  # added to the stored values of a norm
    scale: float = 1.0  # what is a vector is multiplied by it
    unit_rows: bool = False  # rows of an output matrix are brought to length 1
    #: Of a table that is packed as a vector so many rows, in this order; those of `minus_rows` are taken off them.
    rows: tuple[int, ...] = ()
    minus_rows: tuple[int, ...] = ()
    transposed: bool = False  # behind it
    first_row: TensorDecl | None = None  # a vector that is added to the first row of an embedding
    other_rows: TensorDecl | None = None  # and one that is added to all others
    #: A table of which each row is added to all rows of a copy of the embedding; the copies stand behind each other.
    added_rows: TensorDecl | None = None
    #: A vector that follows from its parts, float32 each, so; None: they stand behind each other. An embedding that
    #: follows from the table that is stored.
    made: Callable[[Sequence[Tensor]], Tensor] | None = None

    @property
    def tensors(self) -> tuple[TensorDecl, ...]:
        rest = (*self.biases, self.first_row, self.other_rows, self.added_rows)
        return (*self.parts, *(each for each in rest if each is not None))


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One matrix of a layer's product, as blocks name it: `name` and `gguf` stand behind the layer's prefix."""

    name: str
    gguf: str
    rows: int
    bias: bool = False
    head_dim: int = 0
    rotary_dim: int = 0
    rotary_at: int = 0
    scale: float = 1.0  # stored weights are multiplied by it
    bias_scale: float = 1.0  # and a stored bias by this


def head_order(tensor: TensorDecl, interleaved: bool) -> list[int] | None:
    """The order of a head's rows in which halves of the whole head are the pairs of the rotation, those that are not
    rotated behind the others in each half. None: they stand so. Where the rotated rows are not a head's first, halves
    of them alone are the pairs."""
    head_dim, rotary_dim, at = tensor.head_dim, tensor.rotary_dim, tensor.rotary_at
    if not rotary_dim or (rotary_dim in (head_dim, head_dim - at) and not interleaved):
        return None
    if at:
        return [*range(at), *range(at, head_dim, 2), *range(at + 1, head_dim, 2)]
    rotated, rest = list(range(rotary_dim)), list(range(rotary_dim, head_dim))
    half, rest_half = rotary_dim // 2, len(rest) // 2
    first, second = (rotated[::2], rotated[1::2]) if interleaved else (rotated[:half], rotated[half:])
    return first + rest[:rest_half] + second + rest[rest_half:]
