"""What an adapter of low rank (LoRA) adds to a product, and where the adapters of a product lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from octavo.ops.operands import Weight

#: Of one part of a product.
MAX_LORA_RANK: Final = 256


@dataclass(frozen=True, eq=False)
class LoraPart:
    """Columns first .. first + n of a product: scaling * (x a^T) b is added to them."""

    first: int
    a: Tensor  # [rank, K]
    b: Tensor  # [rank, n], of the same type
    scaling: float


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """One adapter for one product: out = (out + parts) * scale + shift. All tensors are contiguous."""

    parts: tuple[LoraPart, ...]
    scale: Tensor | None = None  # float32 [N]
    shift: Tensor | None = None  # float32 [N]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = [tensor for part in self.parts for tensor in (part.a, part.b)]
        return (*found, *(tensor for tensor in (self.scale, self.shift) if tensor is not None))


class LoraBank(Protocol):
    """The adapters that rows of one product may run with, by their slots."""

    def put(self, slot: int, weights: LoraWeights | None) -> None:
        """None: rows with this slot stay as they are. What is put in must not be changed, and is kept until then."""


@dataclass(frozen=True)
class LoraTarget:
    """A product that adapters change: `columns` of each of its parts, one beside the other. `num_experts`: 0, or it is
    one of so many, each of which has these parts."""

    weight: Weight
    columns: tuple[int, ...]
    num_experts: int = 0

    @property
    def num_products(self) -> int:
        return self.num_experts or 1


class ExpertsBank:
    """The adapters of the products of experts: in one bank, whose slots are pairs of an expert and a slot of the step.
    Those of an expert lie behind each other, as its rows do where they are grouped."""

    def __init__(self, bank: LoraBank, num_experts: int, num_slots: int) -> None:
        """`bank`: with num_experts * num_slots slots."""
        self.bank: Any = bank  # the kind that the table makes
        self.num_experts, self.num_slots = num_experts, num_slots
        self._filled: dict[int, set[int]] = {}  # by slot: the experts that it has something of

    def put(self, slot: int, weights: Mapping[int, LoraWeights] | None) -> None:
        """By experts. None: rows with this slot stay as they are."""
        given = weights or {}
        for expert in self._filled.pop(slot, set()) | given.keys():
            self.bank.put(expert * self.num_slots + slot, given.get(expert))
        self._filled[slot] = set(given)

    def slots_of(self, slots: Tensor, experts: Tensor) -> Tensor:
        """Of rows with a slot and an expert, int32; -1: the row has no adapter."""
        found = experts.to(torch.int32) * self.num_slots + slots
        return torch.where(slots < 0, slots, found)


@dataclass(frozen=True, eq=False)
class ExpertDeltas:
    """What adapters add within a mixture of experts. `slots` int32 [T]: of the rows, -1: none."""

    slots: Tensor
    gate_up: ExpertsBank
    down: ExpertsBank


def bank_name(weight: Weight) -> str:
    """Under which name of a program's weights the bank of a product is found."""
    return f"{weight.name} adapters"


class ReferenceBank:
    """[N, K]: of the product."""

    def __init__(self, columns: Sequence[int], K: int, num_slots: int, max_rank: int, dtype: torch.dtype) -> None:
        """`max_rank`, `dtype`: of what is put in, for banks that make room for it beforehand."""
        self.slots: list[LoraWeights | None] = [None] * num_slots

    def put(self, slot: int, weights: LoraWeights | None) -> None:
        self.slots[slot] = weights


def reference_delta(out: Tensor, x: Tensor, slots: Tensor, bank: ReferenceBank) -> None:
    for slot in sorted(set(slots.tolist())):
        weights = bank.slots[slot] if slot >= 0 else None
        if weights is None:
            continue
        rows = (slots == slot).nonzero()[:, 0]
        found, inputs = out[rows].float(), x[rows].float()
        for part in weights.parts:
            added = part.scaling * (inputs @ part.a.float().t()) @ part.b.float()
            found[:, part.first : part.first + part.b.shape[1]] += added
        if weights.scale is not None:
            found *= weights.scale
        if weights.shift is not None:
            found += weights.shift
        out[rows] = found.to(out.dtype)
