"""The matrices of a step on a GPU: packing, products, and the embedding.

A packed matrix is one of a few kinds, each with a `multiply(out, x)` of its own: dense (`linear_dense`, or
`linear_tiles` where a row's bits must not depend on the batch), integers with floating-point activations
(`linear_int`), float8 or int8 with activations quantized alike (`linear_w8a8`), or several of them stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import torch
from torch import Tensor

from octavo.ops.triton.experts import ExpertsWeight, pack_experts, pack_floats
from octavo.ops.triton.experts_int import IntExperts
from octavo.ops.triton.linear_dense import Bias, DenseLinear, InputNorm
from octavo.ops.triton.linear_embedding import Embedding, embedding
from octavo.ops.triton.linear_int import Form, IntLinear, form_of, pack_int
from octavo.ops.triton.linear_tiles import InvariantLinear, padded_columns
from octavo.ops.triton.linear_w8a8 import TYPES, QuantizedLinear, check_supported, has_layout, pack_quantized
from octavo.quant.packed import QuantizedWeight, as_floats

__all__ = [
    "LinearPacker", "LinearWeight", "can_fuse_act", "can_join", "embedding", "has_fused_act", "linear", "linear_act",
    "linear_joined", "linear_quantized", "quantized_dtype",
]  # fmt: skip

Weight = Tensor | QuantizedWeight


class LinearWeight(Protocol):
    """A packed [N, K] matrix with its bias. `nbytes` is what one use of it reads."""

    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def kind(self) -> str: ...
    def multiply(self, out: Tensor, x: Tensor) -> None: ...


@dataclass(frozen=True, eq=False)
class StackedLinear:
    """Matrices that have no common form, one below the other: each writes its columns of the result."""

    parts: tuple[LinearWeight, ...]

    @property
    def N(self) -> int:
        return sum(part.N for part in self.parts)

    @property
    def K(self) -> int:
        return self.parts[0].K

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def kind(self) -> str:
        return "+".join(dict.fromkeys(part.kind for part in self.parts))

    def multiply(self, out: Tensor, x: Tensor) -> None:
        start = 0
        for part in self.parts:
            part.multiply(out[:, start : start + part.N], x)
            start += part.N


@dataclass(frozen=True, eq=False)
class OrderedLinear:
    """A matrix whose columns stand in another order than those of x."""

    weight: IntLinear
    order: Tensor  # int64 [K], on the device: column j is column order[j] of x

    @property
    def N(self) -> int:
        return self.weight.N

    @property
    def K(self) -> int:
        return self.weight.K

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.order.nbytes

    @property
    def kind(self) -> str:
        return self.weight.kind

    def multiply(self, out: Tensor, x: Tensor) -> None:
        self.weight.multiply(out, x.index_select(1, self.order))


def linear(out: Tensor, x: Tensor, w: LinearWeight) -> None:
    """out [T, N] = x [T, K] @ w.T + bias. x of the activations' type; out too, or float32. Rows may lie apart."""
    if len(x):
        w.multiply(out, x)


def quantized_dtype(w: LinearWeight) -> torch.dtype | None:
    """The type in which `linear_quantized` takes x; None: it does not take w."""
    return w.weight.dtype if isinstance(w, QuantizedLinear) else None


def linear_quantized(out: Tensor, x_q: Tensor, x_scale: Tensor, w: LinearWeight) -> None:
    """out [T, N] = (x_q * x_scale) @ w.T + bias, for x that is quantized already: see `quantize_rows`.

    x_q [T, K] of `quantized_dtype(w)`, x_scale float32 [T, 1].
    """
    assert isinstance(w, QuantizedLinear), w.kind
    if len(x_q):
        w.multiply_quantized(out, x_q, x_scale)


def has_fused_act(w: LinearWeight, num_rows: int) -> bool:
    """Whether `linear_act` takes w, gate over up, with so many rows. Else: `linear`, and then `act_mul`."""
    return isinstance(w, DenseLinear | IntLinear) and num_rows > 0 and w.has_act(num_rows)


def can_fuse_act(w: LinearWeight) -> bool:
    """Whether `has_fused_act` may say yes."""
    return isinstance(w, DenseLinear | IntLinear)


def linear_act(out: Tensor, x: Tensor, w: LinearWeight, kind: str) -> None:
    """out [T, I] = act(x @ gate.T) * (x @ up.T) in one launch; w is gate over up, [2 I, K], and has_fused_act."""
    assert isinstance(w, DenseLinear | IntLinear), w.kind
    w.multiply_act(out, x, kind)


def can_join(w: LinearWeight, num_rows: int, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether `linear_joined` takes w with so many rows of x. (Sums of float16 that no norm has met may overflow.)"""
    if not isinstance(w, DenseLinear | IntLinear) or dtype != torch.bfloat16:
        return False
    return num_rows > 0 and w.can_join(num_rows)


def linear_joined(
    out: Tensor, x: Tensor, w: LinearWeight, *, norm: InputNorm | None = None, act: str = "", adds: bool = False
) -> None:
    """`linear` in one launch with the norm of its input, if there is one, and with the activation of its result
    (`linear_act`), or, `adds`, out += its result. Rounded is x times the norm's weight, and not x's norm."""
    assert isinstance(w, DenseLinear | IntLinear), w.kind
    w.multiply_joined(out, x, norm, act, adds)


class LinearPacker:
    """Packs weights for one device and one type of activations; the order of the methods' calls is free.

    Tensors that lie on the device in the activations' type are kept as they are, others are copied. `to_device` moves
    a tensor there; it may return before the copy has ended, as long as later work on the device waits for it.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        quantization: Literal[None, "fp8", "int8"] = None,
        batch_invariant: bool = False,
        to_device: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Raises DeviceError where the device has no products of the type that `quantization` names."""
        if quantization is not None:
            check_supported(quantization, device)
        self._device = device
        self._dtype = dtype
        self._quantization = quantization
        self._is_invariant = batch_invariant
        self._to_device = to_device or (lambda tensor: tensor.to(device))

    def pack_linear(self, weight: Weight, bias: Tensor | None = None) -> LinearWeight:
        """Pack a [N, K] weight; bias [N], any float type."""
        return self._pack([weight], [bias], False)

    def pack_output(self, weight: Weight, bias: Tensor | None = None) -> LinearWeight:
        """Pack the [N, K] weight of the output layer, which is never quantized here."""
        return self._pack([weight], [bias], True)

    def pack_linear_many(
        self, weights: Sequence[Weight], biases: Sequence[Tensor | None] | None = None
    ) -> LinearWeight:
        """Pack [N_i, K] weights as one, stacked along N. A part without a bias has zeros if another has one."""
        return self._pack(weights, biases if biases is not None else [None] * len(weights), False)

    def pack_embedding(self, weight: Weight) -> Embedding:
        """Pack a [N, K] table of rows; it is never quantized here."""
        return self.tied_embedding(self._pack([weight], [None], True))

    def tied_embedding(self, weight: LinearWeight) -> Embedding:
        """The table whose rows are those of a packed matrix, without a copy."""
        assert isinstance(weight, DenseLinear | InvariantLinear | IntLinear), weight.kind
        return Embedding(weight if isinstance(weight, IntLinear) else weight.weight, weight.K)

    def pack_experts(
        self, weights: Iterable[tuple[Sequence[Weight], Sequence[Tensor | None]]]
    ) -> ExpertsWeight | IntExperts:
        """For each expert its matrices, [N_i, K] one below the other, and their biases."""
        return pack_experts(weights, self._dtype, self._to_device, self._is_invariant)

    def pack_heads(self, weights: Iterable[tuple[Sequence[Weight], Sequence[Tensor | None]]]) -> ExpertsWeight:
        """The same for `head_linear`, which takes floats."""
        return pack_floats(weights, self._dtype, self._to_device, self._is_invariant)

    def _pack(self, weights: Sequence[Weight], biases: Sequence[Tensor | None], keep_dtype: bool) -> LinearWeight:
        if not weights:
            raise ValueError("nothing to pack")
        columns = weights[0].shape[1]
        for weight, bias in zip(weights, biases, strict=True):
            if weight.shape[1] != columns:
                raise ValueError(f"stacked weights must all have {columns} columns")
            if bias is not None and bias.shape != (weight.shape[0],):
                raise ValueError(f"bias {tuple(bias.shape)} does not fit a weight of {weight.shape[0]} rows")
        given = list(zip(weights, biases, strict=True))
        parts = []
        for (form, _), run in groupby(given, lambda pair: (self._form(pair[0], keep_dtype), _order_key(pair[0]))):
            alike, their_biases = zip(*run, strict=True)
            parts.append(self._pack_alike(form, alike, self._bias(alike, their_biases)))
        return parts[0] if len(parts) == 1 else StackedLinear(tuple(parts))

    def _form(self, weight: Weight, keep_dtype: bool) -> Form | str:
        """Equal for weights that can be packed as one."""
        if isinstance(weight, QuantizedWeight):
            # A table of rows is read without an x whose columns could be put in order.
            return "dense" if keep_dtype and weight.order is not None else form_of(weight) or "dense"
        n, k = weight.shape
        return self._quantization if self._quantization and not keep_dtype and has_layout(n, k) else "dense"

    def _pack_alike(self, form: Form | str, weights: Sequence[Weight], bias: Bias | None) -> LinearWeight:
        quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
        if isinstance(form, Form):
            packed = pack_int(quantized, form, bias, self._dtype, self._to_device, self._is_invariant)
            order = quantized[0].order
            return packed if order is None else OrderedLinear(packed, self._to_device(order))
        if form in TYPES:
            floats = [weight for weight in weights if isinstance(weight, Tensor)]
            return pack_quantized(floats, form, bias, self._to_device, self._is_invariant)
        dense = self._dense(weights)
        if self._is_invariant:
            return InvariantLinear(padded_columns(dense), bias, dense.shape[1])
        return DenseLinear(dense, bias)

    def _dense(self, weights: Sequence[Weight]) -> Tensor:
        """The weights on the device, one below the other, in the activations' type."""
        if len(weights) == 1:
            only = self._moved(weights[0]).to(self._dtype).contiguous()
            return only if only.data_ptr() % 16 == 0 else only.clone()
        rows = sum(weight.shape[0] for weight in weights)
        stacked = torch.empty(rows, weights[0].shape[1], dtype=self._dtype, device=self._device)
        start = 0
        for weight in weights:
            stacked[start : start + weight.shape[0]] = self._moved(weight)
            start += weight.shape[0]
        return stacked

    def _moved(self, weight: Weight) -> Tensor:
        """On the device, where no more than this one matrix is held twice."""
        return self._to_device(as_floats(weight))

    def _bias(self, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> Bias | None:
        if all(bias is None for bias in biases):
            return None
        parts = [
            torch.zeros(weight.shape[0], device=self._device) if bias is None
            else self._to_device(bias).to(torch.float32)
            for weight, bias in zip(weights, biases, strict=True)
        ]  # fmt: skip
        exact = torch.cat(parts)
        return Bias(exact, exact.to(self._dtype))


def _order_key(weight: Weight) -> bytes | None:
    """Equal for weights whose columns stand in one order."""
    if not isinstance(weight, QuantizedWeight) or weight.order is None:
        return None
    return weight.order.numpy().tobytes()
