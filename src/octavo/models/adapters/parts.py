"""What the files of an adapter hold, whoever wrote them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

#: A tensor with its name in the files.
Named = tuple[str, Tensor]


@dataclass(slots=True)
class Module:
    """What an adapter says of one module of the model, as it stands in its files, with the tensors' names."""

    scaling: float = 1.0
    a: Named | None = None  # [rank, in]
    b: Named | None = None  # [out, rank]
    b_bias: Named | None = None  # [out]
    magnitude: Named | None = None  # [out], of DoRA
    bias: Named | None = None  # in place of the model's
    whole: Named | None = None  # in place of the model's matrix
    base: Named | None = None  # the model's, of an adapter that may have made it larger
    is_embedding: bool = False  # a and b belong to a table: a [rank, rows]
    is_stack: bool = False  # they belong to all experts: a [experts, rank, in], b [experts, out, rank]


@dataclass(slots=True)
class AdapterFiles:
    """`modules`: by the names of the matrices, as the files' kind has them."""

    source: str
    is_gguf: bool = False
    peft_version: tuple[int, int] = (0, 0)  # that wrote them; (0, 0): they do not say
    context_length: int = 0  # that it was made for; 0: the model's
    modules: dict[str, Module] = field(default_factory=dict)
    #: Rows of tokens that are added, where they stand apart: of the embedding, and of the output matrix.
    new_rows: dict[str, Named] = field(default_factory=dict)

    def module(self, name: str) -> Module:
        return self.modules.setdefault(name, Module())
