"""Collects what the blocks of a model yield: operations in order, and the parameters that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from octavo.models.params import Matrix, Packing, Param, Role, TensorDecl
from octavo.models.rope import relative_buckets
from octavo.models.spec import (
    AlibiSpec,
    ConstantSpec,
    DerivedSpec,
    HeadSpec,
    LogQScaleSpec,
    NormSpec,
    QScaleSpec,
    RelativeSpec,
    RopeSpec,
)
from octavo.ops.operands import Buffer, Cache, Heads, Latent, State, Weight
from octavo.ops.operations import GatherRotation, GivenRows, Linear, Norm, NormParts, Op


class Builder:
    """Blocks call its methods in the order of the operations; each returns the buffer with the result."""

    def __init__(
        self, max_position_embeddings: int, layers: str = "model.layers", gguf_layers: str = "blk", keeps: bool = True
    ) -> None:
        """`layers`, `gguf_layers`: what the names of layers begin with. `keeps`: layers keep what they cache for later
        steps; else one overwrites what the last has left."""
        self.ops: list[Op] = []
        #: Of layers that see an encoder: what writes its rows to their caches. A program of its own, whose caches have
        #: numbers of their own.
        self.crossing: list[Op] = []
        self.encoder_rows: Buffer | None = None
        self.params: list[Param] = []
        self.derived: dict[tuple[DerivedSpec, tuple[int, ...]], Weight] = {}
        self._positions = max_position_embeddings
        self._layers, self._gguf_layers, self._keeps = layers, gguf_layers, keeps
        self._prefix, self._gguf_prefix = "", ""
        self._caches: list[Cache] = []
        self._layer = self._num_states = 0
        self._caches_of: dict[int, Cache] = {}  # by the number of the layer
        #: What all layers read, beside the residual stream: put there in front of them.
        self.streams: tuple[Buffer, ...] = ()
        self.layer_inputs: Buffer | None = None
        self._rotation_rows: dict[Weight, tuple[Buffer, Buffer]] = {}

    def layer(self, number: int) -> None:
        """From here on names are those of a layer."""
        self._prefix, self._gguf_prefix = f"{self._layers}.{number}.", f"{self._gguf_layers}.{number}."
        self._layer = number

    def part(self, name: str, gguf: str) -> None:
        """From here on names are those of a part that is no layer of the list."""
        self._prefix, self._gguf_prefix = f"{name}.", f"{gguf}."

    def top(self) -> None:
        """From here on names belong to no layer."""
        self._prefix = self._gguf_prefix = ""

    def cut(self) -> list[Op]:
        """The operations so far, as those of a program of its own."""
        ops, self.ops, self._rotation_rows = self.ops, [], {}
        return ops

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

    def top_k_buffers(self, name: str, top_k: int) -> tuple[Buffer, Buffer, Buffer]:
        """Which experts, with what weights, and where their rows are."""
        types = {"ids": torch.int32, "weights": torch.float32, "places": torch.int32}
        ids, weights, places = (Buffer(f"{self._prefix}{name}.{each}", top_k, dtype) for each, dtype in types.items())
        return ids, weights, places

    def norm(self, x: Buffer, norm: NormSpec, name: str, gguf: str, scale: float = 1.0) -> Buffer:
        """`scale`: the result is multiplied by it."""
        out = self.buffer(name, x.width)
        declared = [Matrix(name=name, gguf=gguf, rows=x.width)]
        weight, bias = self._norm_vectors(norm, declared, name, scale)
        self.ops.append(Norm(out=out, x=x, weight=weight, eps=norm.eps, kind=norm.kind, bias=bias))
        return out

    def norm_in_place(self, x: Buffer, norm: NormSpec, name: str, gguf: str) -> None:
        self.norm_parts(x, (0, 1, x.width), norm, [Matrix(name=name, gguf=gguf, rows=x.width)], name)

    def norm_parts(
        self,
        x: Buffer,
        place: tuple[int, int, int],
        norm: NormSpec,
        weights: Sequence[Matrix],
        name: str,
        scale: float = 1.0,
    ) -> None:
        """`place`: first column, number of parts, columns of each. `weights`: of all parts, or those of each part.
        `scale`: the result is multiplied by it."""
        first, count, width = place
        weight, bias = self._norm_vectors(norm, weights, name, scale)
        self.ops.append(
            NormParts(
                x=x, first=first, count=count, width=width, weight=weight, eps=norm.eps, kind=norm.kind, bias=bias
            )
        )

    # ------------------------------------------------------------ parameters
    def matrices(
        self,
        name: str,
        matrices: Sequence[Matrix],
        columns: int,
        shard: int | None,
        packing: Packing = "linear",
        unit_rows: bool = False,
    ) -> Weight:
        parts = tuple(self._tensor(m, "weight", "matrix", (m.rows, columns)) for m in matrices)
        biases = tuple(self._bias(matrix) for matrix in matrices)
        weight = Weight(self._prefix + name, (sum(matrix.rows for matrix in matrices), columns), shard)
        self.params.append(Param(weight=weight, parts=parts, biases=biases, packing=packing, unit_rows=unit_rows))
        return weight

    def norm_weight(self, norm: NormSpec, name: str, gguf: str, width: int, rotary_dim: int = 0) -> Weight:
        """`rotary_dim`: of a norm of heads that are rotated."""
        declared = Matrix(name=name, gguf=gguf, rows=width, head_dim=width if rotary_dim else 0, rotary_dim=rotary_dim)
        return self._norm_vectors(norm, [declared], name)[0]

    def experts(
        self, name: str, matrices: Sequence[Sequence[Matrix]], columns: int, shard: int, packing: Packing = "experts"
    ) -> Weight:
        """The matrices of each expert, one below the other."""
        parts = tuple(self._tensor(m, "weight", "matrix", (m.rows, columns)) for each in matrices for m in each)
        biases = tuple(self._bias(matrix) for each in matrices for matrix in each)
        shape = (len(matrices), sum(matrix.rows for matrix in matrices[0]), columns)
        weight = Weight(self._prefix + name, shape, shard)
        self.params.append(Param(weight=weight, parts=parts, biases=biases, packing=packing))
        return weight

    def rotation(self, rope: RopeSpec, head_dim: int) -> Weight:
        """The table of a rotation. Layers with the same rope and heads of the same size share it."""
        return self._derived(rope, (self._positions, head_dim))

    def rotation_rows(self, rope: RopeSpec, head_dim: int) -> tuple[Buffer, Buffer]:
        """The rotations of a step's rows, where positions have several parts, and their places. Layers share them."""
        table = self.rotation(rope, head_dim)
        if table not in self._rotation_rows:
            out = Buffer(f"{table.name} rows", head_dim, torch.float32)
            places = Buffer(f"{table.name} places", 1, torch.int32)
            parts = tuple(part for part, count in enumerate(rope.sections) for _ in range(count))
            if rope.takes_turns and not rope.is_axial:
                turns = ((pair // len(rope.sections), pair % len(rope.sections)) for pair in range(len(parts)))
                parts = tuple(part if turn < rope.sections[part] else 0 for turn, part in turns)
            parts += (0,) * (head_dim // 2 - len(parts))  # pairs that are not rotated
            self.ops.append(GatherRotation(out=out, places=places, rotation=table, parts=parts))
            self._rotation_rows[table] = out, places
        return self._rotation_rows[table]

    def slopes(self, alibi: AlibiSpec) -> Weight:
        return self._derived(alibi, (alibi.num_heads,))

    def relative_biases(self, relative: RelativeSpec, num_heads: int) -> Weight:
        """[num_heads, distances]: one table for all layers."""
        buckets = relative_buckets(relative)
        weight = Weight("relative_biases", (num_heads, len(buckets)))
        if all(param.weight != weight for param in self.params):
            name, shape = "relative_attention_bias.weight", (relative.num_buckets, num_heads)
            tensor = TensorDecl(name=f"model.{name}", gguf=name, shape=shape, role="matrix")
            self.params.append(Param(weight=weight, parts=(tensor,), packing="vector", rows=buckets, transposed=True))
        return weight

    def pooled_head(self, head: HeadSpec, width: int) -> None:
        """Weights that no operation reads: those of a product with one row of `width`."""
        if (of := head.of_table) is not None:
            name, gguf = f"{of.name}.weight", f"{of.gguf}.weight"
            tensor = TensorDecl(name=name, gguf=gguf, shape=(of.count, width), role="matrix")
            weight = Weight(f"{head.name}.weight", (head.size, width))
            self.params.append(
                Param(weight=weight, parts=(tensor,), packing="vector", rows=of.rows, minus_rows=of.minus_rows)
            )
        else:
            self.table(head.name, head.gguf, (head.size, width))
        if head.bias:
            self.vector([Matrix(name=head.name, gguf=head.gguf, rows=head.size)], head.name, "bias", "bias")
        if head.norm is not None:
            norm = Matrix(name=head.norm_name, gguf=head.norm_gguf, rows=head.size)
            self._norm_vectors(head.norm, [norm], head.norm_name)

    def q_scales(self, scale: QScaleSpec | LogQScaleSpec) -> Weight:
        return self._derived(scale, (self._positions, 1))

    def constant(self, *values: float, size: int = 0) -> Weight:
        """A vector of these values, or of `size` times the only one."""
        return self._derived(ConstantSpec(values=values), (size or len(values),))

    def _derived(self, spec: DerivedSpec, shape: tuple[int, ...]) -> Weight:
        """What follows from the configuration."""
        return self.derived.setdefault((spec, shape), Weight(f"{self._layers} derived {len(self.derived)}", shape))

    def cache(self, heads: Heads | Latent, window: int = 0, chunked: bool = False) -> Cache:
        """The next layer's."""
        cache = Cache(index=len(self._caches), heads=heads, window=window, chunked=chunked, layer=self._layer)
        if not self._keeps:
            for before in self._caches:
                if replace(before, index=cache.index) == cache:
                    return before
        self._caches.append(cache)
        self._caches_of[self._layer] = cache
        return cache

    def cache_of(self, number: int) -> Cache:
        """What an earlier layer keeps."""
        return self._caches_of[number]

    def encoder_cache(self, heads: Heads, write: Callable[[Buffer, Cache], Iterator[Op]]) -> Cache:
        """The next layer's, of the rows of an encoder. `write`: from these rows the operations that fill it."""
        assert self.encoder_rows is not None, "the model has no encoder"
        if not self.crossing:
            self.crossing.append(GivenRows(out=self.encoder_rows))
        number = sum(cache.of_encoder for cache in self._caches)
        self.crossing += write(self.encoder_rows, Cache(index=number, heads=heads, of_encoder=True))
        self._caches.append(Cache(index=len(self._caches), heads=heads, of_encoder=True))
        return self._caches[-1]

    def state(self, shape: tuple[int, ...]) -> State:
        """The next layer's."""
        self._num_states += 1
        return State(index=self._num_states - 1, shape=shape)

    def filters(
        self, name: str, gguf: str, taps: int, width: int, bias: bool, scale: float = 1.0
    ) -> tuple[Weight, Weight | None]:
        """Of a convolution: [taps, width], float32, and their bias. `scale`: they are multiplied by it, the bias is
        not: as if their input were."""
        declared = Matrix(name=name, gguf=gguf, rows=width)
        weight = self.table(name, gguf, (taps, width), scale)
        return weight, self.vector([declared], name, "bias", "bias") if bias else None

    def filter_parts(self, name: str, declared: Sequence[Matrix], taps: int) -> Weight:
        """Of one convolution, whose channels have tensors of their own: [taps, channels], float32."""
        weight = Weight(f"{self._prefix}{name}.weight", (taps, sum(each.rows for each in declared)))
        parts = tuple(self._tensor(each, "weight", "matrix", (taps, each.rows)) for each in declared)
        self.params.append(Param(weight=weight, parts=parts, packing="vector"))
        return weight

    def table(self, name: str, gguf: str, shape: tuple[int, ...], scale: float = 1.0) -> Weight:
        """Numbers that no product is made with, float32; what is stored is multiplied by `scale`."""
        weight = Weight(f"{self._prefix}{name}.weight", shape)
        tensor = self._tensor(Matrix(name=name, gguf=gguf, rows=shape[0]), "weight", "matrix", shape)
        self.params.append(Param(weight=weight, parts=(tensor,), packing="vector", scale=scale))
        return weight

    def rows_of_table(self, table: Matrix, columns: int) -> TensorDecl:
        """A table that is a part of another weight."""
        return self._tensor(table, "weight", "matrix", (table.rows, columns))

    def _norm_vectors(
        self, norm: NormSpec, declared: Sequence[Matrix], name: str, scale: float = 1.0
    ) -> tuple[Weight, Weight | None]:
        """Weight and bias of a norm, of one tensor or of several behind each other."""
        if norm.has_weight:
            weight = self.vector(declared, name, "weight", "norm", norm.offset, scale)
        else:
            weight = self.constant(scale, size=sum(each.rows for each in declared))
        return weight, self.vector(declared, name, "bias", "bias", scale=scale) if norm.bias else None

    def vector(
        self,
        declared: Sequence[Matrix],
        name: str,
        kind: str,
        role: Role,
        offset: float = 0.0,
        scale: float = 1.0,
    ) -> Weight:
        """Tensors behind each other. `scale`: they are multiplied by it, the offset included."""
        tensors = tuple(self._tensor(each, kind, role, (each.rows,)) for each in declared)
        weight = Weight(f"{self._prefix}{name}.{kind}", (sum(each.rows for each in declared),))
        self.params.append(Param(weight=weight, parts=tensors, packing="vector", offset=offset, scale=scale))
        return weight

    def made(self, declared: Matrix, made: Callable[[Sequence[torch.Tensor]], torch.Tensor]) -> Weight:
        """A vector that follows from a tensor without a suffix."""
        weight = Weight(self._prefix + declared.name, (declared.rows,))
        tensor = self._tensor(declared, "", "bias", (declared.rows,))
        self.params.append(Param(weight=weight, parts=(tensor,), packing="vector", made=made))
        return weight

    def declared(self, name: str, gguf: str, rows: int) -> TensorDecl:
        """A vector that stands without a suffix, or with that of a bias."""
        return self._tensor(Matrix(name=name, gguf=gguf, rows=rows), "", "bias", (rows,))

    def _bias(self, matrix: Matrix) -> TensorDecl | None:
        return self._tensor(matrix, "bias", "bias", (matrix.rows,)) if matrix.bias else None

    def _tensor(self, matrix: Matrix, kind: str, role: Role, shape: tuple[int, ...]) -> TensorDecl:
        return TensorDecl(
            name=f"{self._prefix}{matrix.name}.{kind}".rstrip("."),
            gguf=f"{self._gguf_prefix}{matrix.gguf}.{kind}".rstrip("."),
            shape=shape,
            role=role,
            head_dim=matrix.head_dim,
            rotary_dim=matrix.rotary_dim,
            rotary_at=matrix.rotary_at,
            scale={"matrix": matrix.scale, "bias": matrix.bias_scale}.get(role, 1.0),
        )
