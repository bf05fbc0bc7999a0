"""Collects what the blocks of a model yield: operations in order, and the parameters that they name."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.models.params import Matrix, Packing, Param, Role, TensorDecl
from octavo.models.spec import NormSpec, RopeSpec
from octavo.ops.program import Buffer, Cache, Heads, Linear, Norm, Op, Weight


class Builder:
    """Blocks call its methods in the order of the operations; each returns the buffer with the result."""

    def __init__(self, max_position_embeddings: int) -> None:
        self.ops: list[Op] = []
        self.params: list[Param] = []
        self.rotations: dict[RopeSpec, Weight] = {}
        self._positions = max_position_embeddings
        self._prefix, self._gguf_prefix = "", ""
        self._num_caches = 0

    def layer(self, number: int) -> None:
        """From here on names are those of a layer."""
        self._prefix, self._gguf_prefix = f"model.layers.{number}.", f"blk.{number}."

    def top(self) -> None:
        """From here on names belong to no layer."""
        self._prefix = self._gguf_prefix = ""

    # ------------------------------------------------------------ operations
    def buffer(self, name: str, width: int) -> Buffer:
        return Buffer(self._prefix + name, width)

    def linear(self, x: Buffer, name: str, matrices: Sequence[Matrix], shard: int) -> Buffer:
        """x times the matrices, one result beside the other."""
        rows = sum(matrix.rows for matrix in matrices)
        out = self.buffer(name, rows)
        weight = self.matrices(name, matrices, x.width, shard)
        self.ops.append(Linear(out=out, x=x, weight=weight))
        return out

    def norm(self, x: Buffer, norm: NormSpec, name: str, gguf: str) -> Buffer:
        out = self.buffer(name, x.width)
        self.ops.append(Norm(out=out, x=x, weight=self.norm_weight(norm, name, gguf, x.width), eps=norm.eps))
        return out

    # ------------------------------------------------------------ parameters
    def matrices(
        self, name: str, matrices: Sequence[Matrix], columns: int, shard: int | None, packing: Packing = "linear"
    ) -> Weight:
        parts = tuple(self._tensor(m, "weight", "matrix", (m.rows, columns)) for m in matrices)
        biases = tuple(self._tensor(m, "bias", "bias", (m.rows,)) if m.bias else None for m in matrices)
        weight = Weight(self._prefix + name, (sum(matrix.rows for matrix in matrices), columns), shard)
        self.params.append(Param(weight=weight, parts=parts, biases=biases, packing=packing))
        return weight

    def norm_weight(
        self, norm: NormSpec, name: str, gguf: str, width: int, order: tuple[int, ...] | None = None
    ) -> Weight:
        """`order`: of a norm of heads, see `TensorDecl`."""
        declared = Matrix(name=name, gguf=gguf, rows=width, head_dim=width if order else 0, order=order)
        tensor = self._tensor(declared, "weight", "norm", (width,))
        weight = Weight(self._prefix + name, (width,))
        self.params.append(Param(weight=weight, parts=(tensor,), packing="vector", offset=norm.offset))
        return weight

    def rotation(self, rope: RopeSpec, head_dim: int) -> Weight:
        """The table of a rotation, which layers with the same rope share. It follows from the configuration."""
        if rope not in self.rotations:
            self.rotations[rope] = Weight(f"rotation {len(self.rotations)}", (self._positions, head_dim))
        return self.rotations[rope]

    def cache(self, heads: Heads, window: int) -> Cache:
        """The next layer's."""
        self._num_caches += 1
        return Cache(index=self._num_caches - 1, heads=heads, window=window)

    def _tensor(self, matrix: Matrix, kind: str, role: Role, shape: tuple[int, ...]) -> TensorDecl:
        return TensorDecl(
            name=f"{self._prefix}{matrix.name}.{kind}",
            gguf=f"{self._gguf_prefix}{matrix.gguf}.{kind}",
            shape=shape,
            role=role,
            head_dim=matrix.head_dim,
            order=matrix.order,
        )
