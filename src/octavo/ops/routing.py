"""How a router's scores become experts and their weights: data, the same for every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What a score stands for: a part of the softmax over all, or a sigmoid of its own. sparsemixer: see `Routing`.
ScoreKind = Literal["softmax", "sigmoid", "sparsemixer"]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """A row goes to the k experts of the highest values, the highest first, equal ones by number.

    The value of an expert is its score; where there is a bias or groups, its probability (what its score stands for)
    plus the bias. The bias has no part in the weight, which is the probability.

    sparsemixer: each expert's weight is its part of a softmax of its own, over the scores s of those that were not
    chosen before it and are near to its own, b: (b - s) / max(|s|, b) is at most 2 `jitter`.
    """

    kind: ScoreKind = "softmax"
    renormalize: bool = True  # the weights are divided by their sum
    factor: float = 1.0  # then they are multiplied by it
    #: Experts come in as many groups of consecutive ones, and only those of the best `top_groups` can be chosen.
    num_groups: int = 1
    top_groups: int = 1
    group_best: int = 1  # the values that a group is worth, added up: its best, or its 2 best
    jitter: float = 0.0
