"""Collects what the blocks of a model yield: operations in order, and the parameters that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from octavo.models.params import Matrix, Packing, Param, Role, TensorDecl
from octavo.models.spec import AlibiSpec, NormSpec, RopeSpec
from octavo.ops.program import Buffer, Cache, Heads, Latent, Linear, Norm, Op, State, Weight


class Builder:
    """Blocks call its methods in the order of the operations; each returns the buffer with the result."""

    def __init__(self, max_position_embeddings: int) -> None:
        self.ops: list[Op] = []
        self.params: list[Param] = []
        self.derived: dict[tuple[RopeSpec | AlibiSpec, tuple[int, ...]], Weight] = {}
        self._positions = max_position_embeddings
        self._prefix, self._gguf_prefix = "", ""
        self._num_caches = self._num_states = 0

    def layer(self, number: int) -> None:
        """From here on names are those of a layer."""
        self._prefix, self._gguf_prefix = f"model.layers.{number}.", f"blk.{number}."

    def top(self) -> None:
        """From here on names belong to no layer."""
        self._prefix = self._gguf_prefix = ""

    # ------------------------------------------------------------ operations
    def buffer(self, name: str, width: int) -> Buffer:
        return Buffer(self._prefix + name, width)

    def linear(self, x: Buffer, name: str, matrices: Sequence[Matrix], shard: int | None) -> Buffer:
        """x times the matrices, one result beside the other."""
        rows = sum(matrix.rows for matrix in matrices)
        out = self.buffer(name, rows)
        weight = self.matrices(name, matrices, x.width, shard)
        self.ops.append(Linear(out=out, x=x, weight=weight))
        return out

    def router(self, x: Buffer, name: str, matrix: Matrix) -> Buffer:
        """Scores of the experts, float32."""
        out = Buffer(self._prefix + name, matrix.rows, torch.float32)
        weight = self.matrices(name, [matrix], x.width, None, "router")
        self.ops.append(Linear(out=out, x=x, weight=weight))
        return out

    def choice_bias(self, num_experts: int) -> Weight:
        """Of a router, float32."""
        return self._vector(Matrix(name="mlp.gate.e_score_correction", gguf="exp_probs_b", rows=num_experts), "bias")

    def top_k_buffers(self, name: str, top_k: int) -> tuple[Buffer, Buffer, Buffer]:
        """Which experts, with what weights, and where their rows are."""
        types = {"ids": torch.int32, "weights": torch.float32, "places": torch.int32}
        ids, weights, places = (Buffer(f"{self._prefix}{name}.{each}", top_k, dtype) for each, dtype in types.items())
        return ids, weights, places

    def norm(self, x: Buffer, norm: NormSpec, name: str, gguf: str) -> Buffer:
        out = self.buffer(name, x.width)
        weight, bias = self.norm_weight(norm, name, gguf, x.width), None
        if norm.bias:
            bias = self._vector(Matrix(name=name, gguf=gguf, rows=x.width), "bias")
        self.ops.append(Norm(out=out, x=x, weight=weight, eps=norm.eps, kind=norm.kind, bias=bias))
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

    def norm_weight(self, norm: NormSpec, name: str, gguf: str, width: int, rotary_dim: int = 0) -> Weight:
        """`rotary_dim`: of a norm of heads that are rotated."""
        declared = Matrix(name=name, gguf=gguf, rows=width, head_dim=width if rotary_dim else 0, rotary_dim=rotary_dim)
        return self._vector(declared, "weight", norm.offset)

    def experts(self, name: str, matrices: Sequence[Sequence[Matrix]], columns: int, shard: int) -> Weight:
        """The matrices of each expert, one below the other."""
        parts = tuple(self._tensor(m, "weight", "matrix", (m.rows, columns)) for each in matrices for m in each)
        shape = (len(matrices), sum(matrix.rows for matrix in matrices[0]), columns)
        weight = Weight(self._prefix + name, shape, shard)
        self.params.append(Param(weight=weight, parts=parts, packing="experts"))
        return weight

    def rotation(self, rope: RopeSpec, head_dim: int) -> Weight:
        """The table of a rotation. Layers with the same rope and heads of the same size share it."""
        return self._derived(rope, (self._positions, head_dim))

    def slopes(self, alibi: AlibiSpec) -> Weight:
        return self._derived(alibi, (alibi.num_heads,))

    def _derived(self, spec: RopeSpec | AlibiSpec, shape: tuple[int, ...]) -> Weight:
        """What follows from the configuration."""
        return self.derived.setdefault((spec, shape), Weight(f"derived {len(self.derived)}", shape))

    def cache(self, heads: Heads | Latent, window: int = 0) -> Cache:
        """The next layer's."""
        self._num_caches += 1
        return Cache(index=self._num_caches - 1, heads=heads, window=window)

    def state(self, shape: tuple[int, ...]) -> State:
        """The next layer's."""
        self._num_states += 1
        return State(index=self._num_states - 1, shape=shape)

    def filters(self, name: str, gguf: str, taps: int, width: int, bias: bool) -> tuple[Weight, Weight | None]:
        """Of a convolution: [taps, width], float32, and their bias."""
        declared = Matrix(name=name, gguf=gguf, rows=width)
        return self.table(name, gguf, (taps, width)), self._vector(declared, "bias") if bias else None

    def table(self, name: str, gguf: str, shape: tuple[int, ...]) -> Weight:
        """Numbers that no product is made with, float32."""
        weight = Weight(f"{self._prefix}{name}.weight", shape)
        tensor = self._tensor(Matrix(name=name, gguf=gguf, rows=shape[0]), "weight", "matrix", shape)
        self.params.append(Param(weight=weight, parts=(tensor,), packing="vector"))
        return weight

    def _vector(self, declared: Matrix, kind: Literal["weight", "bias"], offset: float = 0.0) -> Weight:
        """Of a norm."""
        tensor = self._tensor(declared, kind, "norm" if kind == "weight" else "bias", (declared.rows,))
        weight = Weight(f"{self._prefix}{declared.name}.{kind}", (declared.rows,))
        self.params.append(Param(weight=weight, parts=(tensor,), packing="vector", offset=offset))
        return weight

    def _tensor(self, matrix: Matrix, kind: str, role: Role, shape: tuple[int, ...]) -> TensorDecl:
        return TensorDecl(
            name=f"{self._prefix}{matrix.name}.{kind}",
            gguf=f"{self._gguf_prefix}{matrix.gguf}.{kind}",
            shape=shape,
            role=role,
            head_dim=matrix.head_dim,
            rotary_dim=matrix.rotary_dim,
            rotary_at=matrix.rotary_at,
        )
